"""Which counters a call counts on, and which of them stands in its way."""

import math
from collections.abc import Sequence

from extauthz.ledger import Balance, CapRange, Hold, fits
from extauthz.money import AMOUNT_MAX
from extauthz.policies import Agent, Budget, Line, Policies, Unit
from extauthz.pricing import Estimate
from extauthz.reasons import Reason
from extauthz.store.base import counter_key, rolling_counter_key
from extauthz.windows import Bounds, Window

NEVER_MS = 10 * 365 * 86_400_000
"""A `total` budget has no end; its counter is remembered for ten years after its last use."""


def lines_of(
    agent: Agent,
    budgets: Sequence[Budget],
    estimate: Estimate,
    policies: Policies,
    at_ms: int,
    cap_range: CapRange | None = None,
) -> tuple[Line, ...]:
    """Every budget that a call counts on, with the most that it would hold there.

    Each budget for itself: one that is `fit` must have room for the least cap, and lowers the cap
    to what it has room for; a strict one must have room for the call as it is. Once the cap is
    chosen, all of them hold what the call can use under it.
    """
    lines = [_line(budget, estimate, policies, at_ms, cap_range) for budget in budgets]
    if agent.max_in_flight is not None:
        lines.append(
            Line(
                None,
                Bounds(None, None),
                Hold(
                    counter_key(agent.org, f"agent/{agent.name}/in_flight", None),
                    amount=1,
                    limit=agent.max_in_flight,
                    forget_at_ms=at_ms + policies.memory_ms,
                    transient=True,
                ),
            )
        )
    return tuple(lines)


_now: dict[Window, Bounds] = {}
"""The calendar windows that were looked at last: nearly every call is in the same as the one before
it. As many as the config has kinds of windows."""


def budget_line(budget: Budget, at_ms: int) -> tuple[str, Bounds]:
    """The counter of a budget's current window, and that window."""
    window = budget.window
    if window.length_ms is not None:
        key = rolling_counter_key(budget.org, budget.id, window.length_ms)
        return key, window.bounds(at_ms)
    bounds = _now.get(window)
    if bounds is None or not bounds.contains(at_ms):
        bounds = _now[window] = window.bounds(at_ms)
    return counter_key(budget.org, budget.id, bounds.start_ms), bounds


def with_limits(lines: Sequence[Line], limits: Sequence[int]) -> tuple[Line, ...]:
    """The lines with the limits in force, which overrides may have changed."""
    return tuple(
        [
            line
            if line.hold.limit == limit
            else line._replace(hold=line.hold._replace(limit=limit))
            for line, limit in zip(lines, limits, strict=True)
        ]
    )


def _line(
    budget: Budget,
    estimate: Estimate,
    policies: Policies,
    at_ms: int,
    cap_range: CapRange | None,
) -> Line:
    key, bounds = budget_line(budget, at_ms)
    amount, slope = 1, None
    if budget.unit is Unit.USD:
        amount, slope = estimate.nanousd, estimate.nanousd_under
    elif budget.unit is Unit.TOKENS:
        amount, slope = estimate.tokens, estimate.tokens_under
    least = None
    if cap_range is None or slope is None:
        slope = None
    else:
        amount = slope.at(cap_range.most)
        least = slope.at(cap_range.least) if budget.fit else None
    end_ms = at_ms + NEVER_MS if bounds.end_ms is None else bounds.end_ms
    return Line(
        budget,
        bounds,
        Hold(
            key,
            # An estimate beyond every limit is refused by any of them; the ledger's numbers end
            # there.
            amount=min(amount, AMOUNT_MAX),
            limit=budget.limit,
            forget_at_ms=end_ms + policies.memory_ms,
            enforcing=not budget.shadow,
            budget_id=budget.id,
            slope=slope,
            least=least,
        ),
    )


def blocking(lines: Sequence[Line], balances: Sequence[Balance]) -> tuple[Reason, int] | None:
    """Why a call was not granted, and by which line; None if only shadow budgets stand against it.

    What lasts longest is named first: what can never fit, then what is spent, then what is only
    held. Among spent budgets the one that resets last counts, as nothing helps before that.
    """
    found: dict[Reason, int] = {}
    for index, (line, balance) in enumerate(zip(lines, balances, strict=True)):
        hold = line.hold
        if not hold.enforcing or fits(hold, balance):
            continue
        if line.budget is None:
            reason = Reason.TOO_MANY_IN_FLIGHT
        elif hold.needed > hold.limit:
            reason = Reason.REQUEST_TOO_LARGE
        elif balance.spent + hold.needed > hold.limit:
            reason = Reason.BUDGET_EXHAUSTED
        else:
            reason = Reason.BUDGET_HELD
        known = found.get(reason)
        if known is None or _resets_ms(line) > _resets_ms(lines[known]):
            found[reason] = index
    for reason in (
        Reason.REQUEST_TOO_LARGE,
        Reason.BUDGET_EXHAUSTED,
        Reason.TOO_MANY_IN_FLIGHT,
        Reason.BUDGET_HELD,
    ):
        if reason in found:
            return reason, found[reason]
    return None


def _resets_ms(line: Line) -> float:
    return math.inf if line.bounds.end_ms is None else line.bounds.end_ms


def shadow_denies(lines: Sequence[Line], balances: Sequence[Balance], cap: int | None) -> bool:
    """Whether a shadow budget would have refused this call, which is held under this cap by now."""
    for (_, _, hold), (spent, held) in zip(lines, balances, strict=True):
        if not hold.enforcing:
            amount = hold.amount_under(cap)
            needed = amount if hold.least is None else hold.least
            if spent + held - amount + needed > hold.limit:
                return True
    return False


def tightest(lines: Sequence[Line], balances: Sequence[Balance]) -> int | None:
    """The line that a client should look at: the enforcing USD budget with the least headroom."""
    candidates = [
        (line.hold.limit - balance.spent - balance.held, index)
        for index, (line, balance) in enumerate(zip(lines, balances, strict=True))
        if line.budget is not None and line.hold.enforcing and line.budget.unit is Unit.USD
    ] or [
        (line.hold.limit - balance.spent - balance.held, index)
        for index, (line, balance) in enumerate(zip(lines, balances, strict=True))
        if line.budget is not None and line.hold.enforcing
    ]
    return min(candidates)[1] if candidates else None
