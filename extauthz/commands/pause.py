"""`extauthz pause` and `resume`: an agent or a team makes no calls for a while."""

import argparse

from extauthz.commands.desk import (
    CommandError,
    Desk,
    instant,
    run_at_desk,
    until_of,
    with_config,
    with_id,
    with_until,
)
from extauthz.ledger import Change


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`pause` and `resume`."""
    pause = commands.add_parser("pause", help="refuse every call of an agent or a team")
    resume = commands.add_parser("resume", help="end a pause")
    for parser in (pause, resume):
        parser.add_argument("kind", choices=("agent", "team"))
        parser.add_argument("name", metavar="NAME")
        with_id(parser)
        with_config(parser)
    with_until(pause)
    pause.set_defaults(run=run_at_desk(_pause))
    resume.set_defaults(run=run_at_desk(_resume))


async def _pause(desk: Desk, options: argparse.Namespace) -> None:
    _must_be_known(desk, options.kind, options.name)
    until_ms = until_of(options.until, desk.clock())
    target = f"{options.kind}:{options.name}"
    said = await desk.apply(Change.PAUSE, target, id_=options.id, until_ms=until_ms)
    print(f"{options.kind} {options.name}: a pause {_end(until_ms)} {said}")
    pauses = (await desk.overrides()).pauses
    if (in_force := pauses.get(target, until_ms)) != until_ms:
        print(f"a longer one was there before and stays in force: {_end(in_force)}")


async def _resume(desk: Desk, options: argparse.Namespace) -> None:
    target = f"{options.kind}:{options.name}"
    # One that is in the file no longer can be resumed, too.
    if target not in (await desk.overrides()).pauses:
        _must_be_known(desk, options.kind, options.name)
    said = await desk.apply(Change.RESUME, target, id_=options.id)
    print(f"{options.kind} {options.name}: the end of its pause {said}")


def _end(until_ms: int | None) -> str:
    return "until it is resumed" if until_ms is None else f"until {instant(until_ms)}"


def _must_be_known(desk: Desk, kind: str, name: str) -> None:
    if kind == "agent" and desk.policies.template is not None:
        return  # one that was made on first sight stands in no file
    known = desk.policies.agents if kind == "agent" else desk.policies.teams
    if name not in known:
        raise CommandError(f"there is no {kind} '{name}'; there are: {', '.join(sorted(known))}")
