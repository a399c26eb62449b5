"""`extauthz budget`: what each budget stands at, and other limits than the file's."""

import argparse

from extauthz.commands.desk import (
    CommandError,
    Desk,
    amount_of,
    instant,
    run_at_desk,
    shown,
    until_of,
    with_config,
    with_id,
    with_until,
)
from extauthz.ledger import BudgetOverride, Change
from extauthz.policies import Budget
from extauthz.service.lines import budget_line


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`budget list | set | top-up | unset`."""
    parser = commands.add_parser("budget", help="show budgets, and change limits without a restart")
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")

    show = kinds.add_parser("list", help="every budget, what is spent and held, what was changed")
    with_config(show)
    show.set_defaults(run=run_at_desk(_list))

    change = kinds.add_parser("set", help="another limit than the file's, until it is unset")
    change.add_argument("budget", metavar="ID", help="as 'budget list' shows it")
    change.add_argument("--limit", required=True, metavar="AMOUNT")
    with_until(change)
    with_id(change)
    with_config(change)
    change.set_defaults(run=run_at_desk(_set))

    more = kinds.add_parser("top-up", help="more, for the current window only")
    more.add_argument("budget", metavar="ID", help="as 'budget list' shows it")
    more.add_argument("amount", metavar="AMOUNT")
    with_id(more)
    with_config(more)
    more.set_defaults(run=run_at_desk(_top_up))

    unset = kinds.add_parser("unset", help="the limit of the file again, without top-ups")
    unset.add_argument("budget", metavar="ID", help="as 'budget list' shows it")
    with_id(unset)
    with_config(unset)
    unset.set_defaults(run=run_at_desk(_unset))


async def _set(desk: Desk, options: argparse.Namespace) -> None:
    budget = _budget(desk, options.budget)
    limit = amount_of(options.limit, budget.unit)
    until_ms = until_of(options.until, desk.clock())
    before = (await desk.overrides()).budgets.get(budget.id, BudgetOverride())
    said = await desk.apply(Change.SET, budget.id, id_=options.id, amount=limit, until_ms=until_ms)
    print(f"{budget.id}: a limit of {shown(limit, budget.unit)}{_ending(until_ms)} {said}")
    after = (await desk.overrides()).budgets.get(budget.id, BudgetOverride())
    for part in set(before.top_ups) - set(after.top_ups):
        print(f"a top-up of {shown(part.amount, budget.unit)} before it has ended by this")
    for part in after.limits[1:]:
        print(f"and then{_ending(part.until_ms)}: {shown(part.amount, budget.unit)}, set before")


async def _top_up(desk: Desk, options: argparse.Namespace) -> None:
    budget = _budget(desk, options.budget)
    amount = amount_of(options.amount, budget.unit)
    until_ms = budget.window.bounds(desk.clock()).end_ms
    said = await desk.apply(
        Change.TOP_UP, budget.id, id_=options.id, amount=amount, until_ms=until_ms
    )
    print(f"{budget.id}: {shown(amount, budget.unit)} more{_ending(until_ms)} {said}")


async def _unset(desk: Desk, options: argparse.Namespace) -> None:
    # One that is in the file no longer can be unset, too.
    overrides = await desk.overrides()
    if options.budget not in overrides.budgets:
        _budget(desk, options.budget)
    said = await desk.apply(Change.UNSET, options.budget, id_=options.id)
    print(f"{options.budget}: the limit of the file {said}")


async def _list(desk: Desk, _options: argparse.Namespace) -> None:
    (org,) = desk.policies.orgs
    overrides = await desk.overrides()
    budgets, at_ms = desk.budgets, desk.clock()
    keys = [budget_line(budget, at_ms)[0] for budget in budgets]
    balances = await desk.store.balances(org, keys, at_ms)
    rows: list[tuple[str, ...]] = [("budget", "limit", "spent", "held", "left", "changed")]
    for budget, balance in zip(budgets, balances, strict=True):
        limit = overrides.limit_in_force(budget.id, budget.limit, at_ms)
        left = max(0, limit - balance.spent - balance.held)
        amounts = (limit, balance.spent, balance.held, left)
        texts = [shown(amount, budget.unit) for amount in amounts]
        found = overrides.budgets.get(budget.id)
        changed = _changes(budget, found) if found else ""
        for one in desk.policies.outgoing:
            if one.budget is budget:
                changed = f"as it was before the file changed{_ending(one.until_ms)} {changed}"
        rows.append((budget.id, *texts, changed))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )
    for who, until_ms in sorted(overrides.pauses.items()):
        kind, _, name = who.partition(":")
        print(f"{kind} {name} is paused{_ending(until_ms) or ' until it is resumed'}")
    for id_ in sorted(overrides.budgets.keys() - {budget.id for budget in budgets}):
        print(f"{id_} was changed, and is no budget of this file")


def _changes(budget: Budget, override: BudgetOverride) -> str:
    words: list[str] = []
    for part in override.limits:
        # The first one is in force, and so shown as the limit.
        said = f"then {shown(part.amount, budget.unit)}" if words else "set"
        words.append(f"{said}{_ending(part.until_ms)}")
    if words:
        words = [", ".join(words)]
        words.append(f"(file: {shown(budget.limit, budget.unit)})")
    words += [
        f"+ {shown(part.amount, budget.unit)}{_ending(part.until_ms)}" for part in override.top_ups
    ]
    return " ".join(words)


def _ending(until_ms: int | None) -> str:
    return "" if until_ms is None else f" until {instant(until_ms)}"


def _budget(desk: Desk, id_: str) -> Budget:
    for budget in desk.budgets:
        if budget.id == id_:
            return budget
    known = "\n".join(f"  {budget.id}" for budget in desk.budgets)
    raise CommandError(f"there is no budget '{id_}'; there are:\n{known}")
