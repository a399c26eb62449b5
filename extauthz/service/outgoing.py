"""A window or time zone that changes takes effect at the next boundary.

The changed budget counts on counters of its own from now on, which are empty: alone, it would grant
in one day what two days may cost. So the budget as it was stays in force beside it until the window
ends that it is in now. A call counts on both, and neither limit is passed.

`total` has no boundary: what replaces it is in force alone, at once.
"""

from collections.abc import Iterable, Sequence

from extauthz.identity import short_name
from extauthz.policies import Agent, Budget, Outgoing, Policies, Scope
from extauthz.service.lines import budget_line


def outgoing_after(
    before: Iterable[Budget], outgoing: Iterable[Outgoing], after: Iterable[Budget], at_ms: int
) -> tuple[Outgoing, ...]:
    """What is still in force of the budgets before a change, those that were outgoing included.

    A budget is replaced where its owner, unit and model have one that was not there before. One
    that is removed without that is gone, and so is what it had replaced, if none is left there.
    """
    known, now = list(before), list(after)
    shapes = {(budget.place, budget.window) for budget in now}
    places = {budget.place for budget in now}
    were = {(budget.place, budget.window) for budget in known}
    with_new = {budget.place for budget in now if (budget.place, budget.window) not in were}
    found = {
        (one.budget.place, one.budget.window): one
        for one in outgoing
        if one.until_ms > at_ms and one.budget.place in places
    }
    for budget in known:
        end_ms = budget.window.bounds(at_ms).end_ms
        if budget.place in with_new and end_ms is not None:
            found[budget.place, budget.window] = Outgoing(budget, end_ms)
    return tuple(one for shape, one in found.items() if shape not in shapes)


def with_outgoing(
    budgets: Sequence[Budget],
    policies: Policies,
    agent: Agent,
    key_hash: str,
    provider: str,
    models: Sequence[str],
    at_ms: int,
) -> tuple[Budget, ...]:
    """The budgets of the file that a call counts on, and the outgoing ones beside them.

    Where an outgoing one has the counter of another (a midnight of two time zones), it is left out.
    """
    if not policies.outgoing:
        return tuple(budgets)
    owner = {
        Scope.AGENT: agent.name,
        Scope.KEY: short_name(key_hash),
        Scope.TEAM: agent.team,
        Scope.ORG: agent.org,
        Scope.PROVIDER: provider,
    }
    by_key = {budget_line(budget, at_ms)[0]: budget for budget in budgets}
    for one in policies.outgoing:
        of = one.budget
        is_its_own = of.org == agent.org and owner.get(of.scope, of.name) == of.name
        if at_ms < one.until_ms and is_its_own and of.counts(*models):
            by_key.setdefault(budget_line(of, at_ms)[0], of)
    return tuple(by_key.values())
