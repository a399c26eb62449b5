"""`extauthz audit` and `extauthz ledger rebuild`: whether counters and books agree, and what to do.

Both work beside running services.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from extauthz.archive import verify
from extauthz.commands.desk import Desk, run_at_desk, with_config
from extauthz.money import format_usd
from extauthz.policies import Policies, Unit
from extauthz.service.audit import Auditor
from extauthz.service.audit_reader import Audit
from extauthz.service.drift import Drift
from extauthz.service.past import ArchivedPast
from extauthz.service.rebuild import NothingToRebuildError, Rebuilder, RebuildError


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`audit`."""
    audit = commands.add_parser(
        "audit", help="compare the counters with the books, while calls go on"
    )
    audit.add_argument("--repair", action="store_true", help="set counters to what the books say")
    audit.add_argument("--reason", metavar="TEXT", help="why, for the rows that --repair writes")
    audit.add_argument("--json", action="store_true", help="for machines")
    with_config(audit)
    audit.set_defaults(run=run_at_desk(_audit))


def add_rebuild_to(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`ledger rebuild`."""
    rebuild = kinds.add_parser(
        "rebuild", help="make the counters again from the archive, when the store has lost books"
    )
    rebuild.add_argument("--reason", required=True, metavar="TEXT", help="what happened; is kept")
    rebuild.add_argument(
        "--go-on",
        action="store_true",
        help="write off what the store has lost of what was spent, and count it no more",
    )
    with_config(rebuild)
    rebuild.set_defaults(run=run_at_desk(rebuild_orgs))


async def _audit(desk: Desk, options: argparse.Namespace) -> None:
    """Exits with 1 where something is wrong and was not repaired."""
    reason = (options.reason or "").strip() or "audit --repair"
    is_clean = True
    told = []
    for org in desk.policies.all_orgs:
        archive = desk.archive_of(org)
        proof = await asyncio.to_thread(verify, archive)
        past = ArchivedPast(archive, desk.store, org)
        auditor = Auditor(desk.store.bookkeeping, desk.store, desk.clock)
        left: list[Drift] = []
        if options.repair:
            audit, left = await auditor.repair(org, past, reason=reason)
        else:
            audit = await auditor.audit(org, past)
            left = audit.drifts
        audit.findings += [str(finding) for finding in (*proof.findings, *proof.ended_twice)]
        is_clean &= not left and not audit.findings
        repaired = [drift for drift in audit.drifts if drift not in left]
        if options.json:
            told.append(_as_json(audit, repaired, desk.policies))
        else:
            _print(audit, repaired, desk.policies)
    if options.json:
        json.dump(told, sys.stdout, indent=2)
        print()
    if not is_clean:
        sys.exit(1)


def _print(audit: Audit, repaired: Sequence[Drift], policies: Policies) -> None:
    print(
        f"{audit.org}: {audit.counters} counters, {audit.open} open reservations, up to row "
        f"{audit.last_seq}: {'all agree' if audit.is_clean else 'NOT as the books say'}"
    )
    for drift in audit.drifts:
        unit = _unit_of(drift, policies)
        print(
            f"  {drift.counter}: {drift.what} shows {_shown(drift.shown, unit)}, the books say "
            f"{_shown(drift.due, unit)} ({_shown(drift.amount, unit, signed=True)})"
            f"{': set right' if drift in repaired else ''}"
        )
    for finding in audit.findings:
        print(f"  {finding}")


def _as_json(audit: Audit, repaired: Sequence[Drift], policies: Policies) -> Mapping[str, object]:
    return {
        "org": audit.org,
        "clean": audit.is_clean,
        "last_seq": audit.last_seq,
        "counters": audit.counters,
        "open_reservations": audit.open,
        "drifts": [
            {
                "counter": drift.counter,
                "what": drift.what,
                "unit": _unit_of(drift, policies),
                "shown": _bare(drift.shown, _unit_of(drift, policies)),
                "due": _bare(drift.due, _unit_of(drift, policies)),
                "drift": _bare(drift.amount, _unit_of(drift, policies)),
                "repaired": drift in repaired,
            }
            for drift in audit.drifts
        ],
        "findings": audit.findings,
    }


async def rebuild_orgs(desk: Desk, options: argparse.Namespace) -> None:
    """Rebuild every org that has lost something.

    Raises:
        RebuildError: none has, or one cannot be rebuilt now.
    """
    if not options.reason.strip():
        raise RebuildError("--reason: say what happened; it is kept in the books")
    done, whole = 0, None
    for org in desk.policies.all_orgs:
        archive = desk.archive_of(org)
        if not (archive.last_seq or options.go_on):
            continue
        rebuilder = Rebuilder(
            desk.store,
            desk.store.bookkeeping,
            archive,
            desk.clock,
            desk.policies.settle_horizon_ms,
        )
        work = rebuilder.go_on if options.go_on else rebuilder.rebuild
        try:
            rebuilt = await work(org, reason=options.reason)
        except NothingToRebuildError as error:  # others may have lost theirs
            whole = error
            continue
        done += 1
        counts = ", ".join(
            f"{n} {name}" for name, n in asdict(rebuilt).items() if name != "last_seq"
        )
        print(f"{org}: the books go on after row {rebuilt.last_seq}: {counts}")
    if not done and whole:
        raise whole
    if not done:
        raise RebuildError(
            "nothing is archived in this data_dir, so there is nothing to rebuild from: run it "
            "where the archive is, or write off what was lost with --go-on"
        )
    print("What was written after the last archived row is found in the file access log, if there")
    print("is one: run 'extauthz reconcile', then 'extauthz audit'.")


def _unit_of(drift: Drift, policies: Policies) -> str:
    budget_id = drift.counter.rpartition(":")[0]
    units = {budget.id: budget.unit.value for budget in policies.budgets}
    if budget_id in units:
        return units[budget_id]
    words = budget_id.split("/")
    return next((unit.value for unit in Unit if unit.value in words[3:4]), "in budget units")


def _shown(amount: int, unit: str, *, signed: bool = False) -> str:
    sign = "+" if signed and amount > 0 else ""
    return f"{sign}{_bare(amount, unit)} {unit.upper() if unit == Unit.USD else unit}"


def _bare(amount: int, unit: str) -> str:
    return format_usd(amount) if unit == Unit.USD else str(amount)
