"""How a budget stands, in response headers: on refusals and on answers alike."""

import math

from extauthz.ledger import Balance
from extauthz.money import format_usd
from extauthz.policies import Line, Unit


def reset_seconds(line: Line, at_ms: int) -> int | None:
    """Whole seconds until the budget's window ends; None for `total`, which never does."""
    if line.bounds.end_ms is None:
        return None
    return max(1, math.ceil((line.bounds.end_ms - at_ms) / 1000))


def budget_headers(line: Line, balance: Balance, at_ms: int) -> list[tuple[str, str]]:
    """How a budget stands, for people (`x-budget-*`) and for machines (the IETF RateLimit draft).

    Source: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/. Quantities
    there are whole numbers; those of a USD budget are micro-USD, as `qu` says.
    """
    budget, hold = line.budget, line.hold
    assert budget is not None, "calls in flight are no budget"
    remaining = max(0, hold.limit - balance.spent - balance.held)
    reset = (
        None
        if line.bounds.end_ms is None
        else max(0, math.ceil((line.bounds.end_ms - at_ms) / 1000))
    )
    usd = budget.unit is Unit.USD
    suffix = "usd" if usd else budget.unit.value

    def shown(amount: int) -> str:
        return format_usd(amount) if usd else str(amount)

    def counted(amount: int) -> str:
        return str(amount // 1000 if usd else amount)

    name = f'"{budget.id}"'
    policy = f'{name};q={counted(hold.limit)};qu="{"micro-usd" if usd else suffix}"'
    rate = f"{name};r={counted(remaining)}"
    if line.bounds.start_ms is not None and line.bounds.end_ms is not None:
        policy += f";w={(line.bounds.end_ms - line.bounds.start_ms) // 1000}"
    headers = [
        (f"x-budget-limit-{suffix}", shown(hold.limit)),
        (f"x-budget-spent-{suffix}", shown(balance.spent)),
        (f"x-budget-held-{suffix}", shown(balance.held)),
        (f"x-budget-remaining-{suffix}", shown(remaining)),
    ]
    if reset is not None:
        headers.append(("x-budget-reset", str(reset)))
        rate += f";t={reset}"
    return [*headers, ("ratelimit-policy", policy), ("ratelimit", rate)]
