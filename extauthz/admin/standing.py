"""How every configured budget stands now, read from the store."""

from extauthz.ledger import Balance
from extauthz.policies import Budget
from extauthz.service.lines import budget_line
from extauthz.service.rules import Clock, Rules
from extauthz.store.base import LedgerStore


async def standing_now(
    rules: Rules, store: LedgerStore, clock: Clock
) -> tuple[list[tuple[Budget, Balance]], int]:
    """Each budget with its balance in the current window, and how many reservations are open.

    Raises:
        StoreUnavailableError: the store does not answer.
    """
    at_ms = clock()
    standing: list[tuple[Budget, Balance]] = []
    open_reservations = 0
    for org in rules.policies.orgs:
        budgets = [budget for budget in rules.policies.budgets if budget.org == org]
        keys = [budget_line(budget, at_ms)[0] for budget in budgets]
        standing += zip(budgets, await store.balances(org, keys), strict=True)
        open_reservations += await store.open_reservations(org)
    return standing, open_reservations
