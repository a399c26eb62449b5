"""`extauthz key`: virtual keys that the ledger keeps, in force at the next call.

The key itself is printed once and stands nowhere else: the ledger and its books have its SHA-256.
"""

import argparse
import asyncio
import os
import secrets
import sys
from pathlib import Path

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
from extauthz.config.values import duration_ms
from extauthz.identity import KEY_HASH_PREFIX, hash_key, make_key, short_name
from extauthz.ledger import KEYS_MAX, Change, Key

_NAMED_BY = "as 'key list' shows it: the first digits of its hash"
_DIGITS_MIN = 6


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`key create | list | expire | rotate | revoke`."""
    parser = commands.add_parser("key", help="make, list, rotate and revoke agents' virtual keys")
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")

    create = kinds.add_parser("create", help="make a virtual key and print it, this once")
    create.add_argument("agent", metavar="AGENT", help="of the config: whose calls it makes")
    with_until(create)
    _with_output(create)
    with_config(create)
    create.set_defaults(run=run_at_desk(_create))

    show = kinds.add_parser("list", help="every virtual key, by its hash: whose, until when")
    with_config(show)
    show.set_defaults(run=run_at_desk(_list))

    expire = kinds.add_parser("expire", help="let a virtual key end at a time, or at no time")
    expire.add_argument("key", metavar="KEY", help=_NAMED_BY)
    end = expire.add_mutually_exclusive_group(required=True)
    end.add_argument("--until", metavar="TIME", help="such as 2026-12-01T00:00Z")
    end.add_argument("--never", action="store_true", help="it holds until it is revoked")
    with_id(expire)
    with_config(expire)
    expire.set_defaults(run=run_at_desk(_expire))

    rotate = kinds.add_parser(
        "rotate", help="make another key of the same agent, and let this one end a little later"
    )
    rotate.add_argument("key", metavar="KEY", help=_NAMED_BY)
    rotate.add_argument(
        "--overlap", default="24h", metavar="DURATION", help="how long both hold (default: 24h)"
    )
    _with_output(rotate)
    with_config(rotate)
    rotate.set_defaults(run=run_at_desk(_rotate))

    revoke = kinds.add_parser("revoke", help="refuse a virtual key from the next call on")
    revoke.add_argument("key", metavar="KEY", help=_NAMED_BY)
    with_id(revoke)
    with_config(revoke)
    revoke.set_defaults(run=run_at_desk(_revoke))


def _with_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the key there, for its owner only (default: stdout)",
    )


async def _create(desk: Desk, options: argparse.Namespace) -> None:
    if options.agent not in desk.policies.agents:
        known = ", ".join(sorted(desk.policies.agents))
        raise CommandError(f"there is no agent '{options.agent}'; there are: {known}")
    until_ms = until_of(options.until, desk.clock())
    await _make(desk, f"agent:{options.agent}", until_ms, options.output)


async def _make(desk: Desk, whose: str, until_ms: int | None, output: Path | None) -> None:
    """Make a key that is in force, and only then show it."""
    if output is not None and await asyncio.to_thread(output.exists):
        raise CommandError(f"--output {output}: is there already and is not overwritten")
    keys, at_ms = (await desk.overrides()).keys, desk.clock()
    ended = {key_hash: key for key_hash, key in keys.items() if not key.holds(at_ms)}
    for key_hash, key in ended.items():  # nobody can use it, and there is not room for ever
        await desk.apply(Change.REVOKE, key.whose, id_=None, key_hash=key_hash)
    if len(keys) - len(ended) >= KEYS_MAX:
        raise CommandError(f"there are {KEYS_MAX} virtual keys, which is as many as there may be")
    made = make_key(secrets.token_bytes(32))
    key_hash = hash_key(made)
    try:
        said = await desk.apply(Change.ADMIT, whose, id_=None, until_ms=until_ms, key_hash=key_hash)
    except CommandError as error:
        raise CommandError(
            f"the key was not made, or nobody knows: {str(error).splitlines()[0]}\n"
            f"Make another; and if 'key list' shows {short_name(key_hash)}, revoke that"
        ) from error
    agent = whose.removeprefix("agent:")
    print(f"{short_name(key_hash)}: a virtual key of '{agent}' {said}", file=sys.stderr)
    _hand_over(made, output)


def _hand_over(key: str, output: Path | None) -> None:
    if output is None:
        print(key)
        return
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CommandError(
            f"--output {output}: cannot be written ({error.strerror}), so the key is lost: revoke "
            f"{short_name(hash_key(key))}"
        ) from error
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")


async def _list(desk: Desk, _options: argparse.Namespace) -> None:
    at_ms = desk.clock()
    rows: list[tuple[str, ...]] = [("key", "agent", "made", "ends")]
    stored = (await desk.overrides()).keys
    for key_hash, key in sorted(stored.items(), key=lambda item: item[1].made_at_ms):
        end = "never" if key.until_ms is None else instant(key.until_ms)
        ended = "" if key.holds(at_ms) else " (expired)"
        known = "" if key.agent in desk.policies.agents else " (not configured)"
        made = instant(key.made_at_ms)
        rows.append((short_name(key_hash), key.agent + known, made, end + ended))
    for key_hash, agent in sorted(desk.policies.agent_by_key_hash.items()):
        rows.append((short_name(key_hash), agent.name, "in the config file", "never"))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


async def _expire(desk: Desk, options: argparse.Namespace) -> None:
    key_hash, key = await _find(desk, options.key)
    until_ms = None if options.never else until_of(options.until, desk.clock())
    said = await desk.apply(
        Change.ADMIT, key.whose, id_=options.id, until_ms=until_ms, key_hash=key_hash
    )
    end = "no end" if until_ms is None else f"an end at {instant(until_ms)}"
    print(f"{short_name(key_hash)}: {end} {said}")


async def _rotate(desk: Desk, options: argparse.Namespace) -> None:
    key_hash, key = await _find(desk, options.key)
    try:
        overlap_ms = duration_ms(options.overlap)
    except ValueError as error:
        raise CommandError(f"--overlap {options.overlap}: {error}") from error
    if not key.holds(desk.clock()):
        raise CommandError(f"{options.key} has expired: make another with 'key create {key.agent}'")
    await _make(desk, key.whose, None, options.output)
    end_ms = desk.clock() + overlap_ms
    if key.until_ms is not None and key.until_ms <= end_ms:
        end_ms = key.until_ms
    else:
        await desk.apply(Change.ADMIT, key.whose, id_=None, until_ms=end_ms, key_hash=key_hash)
    print(f"{short_name(key_hash)}: holds until {instant(end_ms)}", file=sys.stderr)


async def _revoke(desk: Desk, options: argparse.Namespace) -> None:
    key_hash, key = await _find(desk, options.key)
    said = await desk.apply(Change.REVOKE, key.whose, id_=options.id, key_hash=key_hash)
    print(f"{short_name(key_hash)}: its revocation {said}")


async def _find(desk: Desk, text: str) -> tuple[str, Key]:
    """The one key of the ledger whose hash begins so.

    Raises:
        CommandError: there is none, or more than one, or it is one of the file.
    """
    digits = text.removeprefix(KEY_HASH_PREFIX).lower()
    stored = (await desk.overrides()).keys
    found = [one for one in stored if one.removeprefix(KEY_HASH_PREFIX).startswith(digits)]
    if len(digits) < _DIGITS_MIN or len(found) > 1:
        raise CommandError(f"{text}: write more digits of the key's hash, as 'key list' shows it")
    if found:
        return found[0], stored[found[0]]
    for key_hash, agent in desk.policies.agent_by_key_hash.items():
        if key_hash.removeprefix(KEY_HASH_PREFIX).startswith(digits):
            raise CommandError(
                f"{text}: stands in the config file: remove it under agents.{agent.name}.keys and "
                "reload (SIGHUP)"
            )
    raise CommandError(f"{text}: there is no such key; 'key list' shows them")
