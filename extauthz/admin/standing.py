"""How every configured budget stands now, read from the store."""

from dataclasses import replace

from extauthz.ledger import Balance
from extauthz.policies import Budget
from extauthz.service.lines import budget_line
from extauthz.service.rules import Clock, Rules
from extauthz.store.base import LedgerStore


async def standing_now(
    rules: Rules, store: LedgerStore, clock: Clock
) -> tuple[list[tuple[Budget, Balance]], int]:
    """Each budget with its balance in the current window, and how many reservations are open.

    The budgets come with the limits in force, not with those of the file.

    Raises:
        StoreUnavailableError: the store does not answer.
    """
    at_ms = clock()
    standing: list[tuple[Budget, Balance]] = []
    open_reservations = 0
    for org in rules.policies.orgs:
        overrides = await store.overrides(org, at_ms)
        budgets = [
            replace(budget, limit=overrides.limit_in_force(budget.id, budget.limit, at_ms))
            for budget in rules.policies.budgets
            if budget.org == org
        ]
        keys = [budget_line(budget, at_ms)[0] for budget in budgets]
        standing += zip(budgets, await store.balances(org, keys, at_ms), strict=True)
        open_reservations += await store.open_reservations(org)
    for org in rules.policies.former_orgs:
        open_reservations += await store.open_reservations(org)
    return standing, open_reservations
