"""Which budgets a call counts on, which of them refuses it, and how a budget stands in headers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_rules import DOLLAR, agent, budget, rules

from extauthz.ledger import Balance, fits_all
from extauthz.money import AMOUNT_MAX
from extauthz.policies import Line, Scope, Unit
from extauthz.pricing import Estimate
from extauthz.reasons import Reason
from extauthz.service.budget_headers import budget_headers, reset_seconds
from extauthz.service.lines import blocking, lines_of, shadow_denies, tightest
from extauthz.windows import ROLLING_LENGTHS_MS, Period, Window

AT = 1_790_000_000_000
DAY = budget(10)
MONTH = budget(100, window=Window(Period.MONTH))
TOTAL = budget(50, window=Window(Period.TOTAL))
WINDOWS = [Window(period) for period in Period if period is not Period.ROLLING]
WINDOWS += [Window(Period.ROLLING, length=length) for length in ROLLING_LENGTHS_MS]


def lines(*budgets, dollars: int = 4, models=("small",), **fields: object) -> tuple[Line, ...]:
    who = agent(*budgets, **fields)
    estimate = Estimate(dollars * DOLLAR, 100, 20)
    policies = rules(who).policies
    budgets = policies.budgets_for(who, "", "openai", models)
    return lines_of(who, budgets, estimate, policies, AT)


def spent(*dollars: int, held: int = 0) -> list[Balance]:
    return [Balance(amount * DOLLAR, held * DOLLAR) for amount in dollars]


def test_each_budget_holds_in_its_own_unit():
    held = lines(DAY, budget(9, unit=Unit.TOKENS), budget(9, unit=Unit.REQUESTS), max_in_flight=3)
    assert [line.hold.amount for line in held] == [4 * DOLLAR, 120, 1, 1]
    assert [line.hold.limit for line in held] == [10 * DOLLAR, 9, 9, 3]
    assert [line.hold.transient for line in held] == [False, False, False, True]
    assert len({line.hold.key for line in held}) == 4


@pytest.mark.parametrize(
    ("pattern", "counts"),
    [("gpt-5*", True), ("gpt-5", True), ("gpt-5-*", True), ("*mini", False), ("gpt-4*", False)],
)
def test_a_budget_counts_calls_to_a_model_under_any_of_its_names(pattern, counts):
    held = lines(budget(1, model=pattern), models=("GPT-5-2025-08-07", "gpt-5"))
    assert bool(held) == counts


def test_a_counter_is_remembered_longer_than_any_call_of_its_window_may_take():
    policies = rules(agent(DAY)).policies
    longest = policies.stream_ms_max + policies.lease_ms + policies.settle_horizon_ms
    (day,) = lines(DAY)
    assert day.bounds.end_ms is not None
    assert day.hold.forget_at_ms == day.bounds.end_ms + longest
    assert lines(TOTAL)[0].hold.forget_at_ms > AT + 9 * 365 * 86_400_000


def test_an_estimate_beyond_the_ledgers_numbers_is_cut_to_them():
    assert lines(DAY, dollars=10**9)[0].hold.amount == AMOUNT_MAX


@pytest.mark.parametrize(
    ("budgets", "balances", "refusal"),
    [
        ((DAY,), spent(6), None),
        ((DAY,), spent(7), (Reason.BUDGET_EXHAUSTED, 0)),
        ((DAY,), spent(0, held=7), (Reason.BUDGET_HELD, 0)),
        ((budget(3),), spent(0), (Reason.REQUEST_TOO_LARGE, 0)),
        ((DAY, MONTH), spent(7, 97), (Reason.BUDGET_EXHAUSTED, 1)),
        ((MONTH, DAY), spent(97, 7), (Reason.BUDGET_EXHAUSTED, 0)),
        ((DAY, TOTAL, MONTH), spent(7, 47, 97), (Reason.BUDGET_EXHAUSTED, 1)),
        ((DAY, budget(3, window=Window(Period.MINUTE))), spent(7, 0),
         (Reason.REQUEST_TOO_LARGE, 1)),
        ((replace(DAY, shadow=True), MONTH), spent(10, 0), None),
        ((replace(DAY, shadow=True), MONTH), spent(10, 97), (Reason.BUDGET_EXHAUSTED, 1)),
    ],
)  # fmt: skip
def test_what_lasts_longest_is_named_first(budgets, balances, refusal):
    assert blocking(lines(*budgets), balances) == refusal


amounts = st.integers(0, 20)
budgets_of_any_kind = st.lists(
    st.builds(
        lambda limit, window, shadow: budget(limit, window=window, shadow=shadow),
        amounts,
        st.sampled_from(WINDOWS),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@given(budgets_of_any_kind, st.data())
def test_a_line_stands_in_the_way_if_and_only_if_the_ledger_refuses(budgets, data):
    held = lines(*budgets)
    balances = [Balance(data.draw(amounts) * DOLLAR, data.draw(amounts) * DOLLAR) for _ in budgets]
    refused = not fits_all([line.hold for line in held], balances)
    found = blocking(held, balances)
    assert (found is not None) == refused
    if found is not None:
        assert held[found[1]].hold.enforcing


def test_a_shadow_budget_says_what_it_would_have_done():
    held = lines(replace(DAY, shadow=True), MONTH)

    def denies(*dollars):
        balances = [
            Balance(balance.spent, line.hold.amount)
            for line, balance in zip(held, spent(*dollars), strict=True)
        ]
        return shadow_denies(held, balances, None)

    assert denies(7, 0)
    assert not denies(6, 0)
    assert not denies(0, 97)


def test_the_tightest_enforcing_budget_in_money_is_shown():
    held = lines(replace(DAY, shadow=True), MONTH, TOTAL, budget(1, unit=Unit.TOKENS))
    assert tightest(held, [*spent(9, 0, 0), Balance()]) == 2
    assert tightest(held, [*spent(9, 80, 0), Balance()]) == 1
    assert tightest(lines(budget(9, unit=Unit.REQUESTS)), [Balance()]) == 0
    assert tightest(lines(replace(DAY, shadow=True)), spent(0)) is None
    assert tightest((), []) is None


def test_headers_tell_people_and_machines_how_a_budget_stands():
    (line,) = lines(budget(25))
    assert line.bounds.end_ms is not None
    at_ms = line.bounds.end_ms - 90_500
    headers = dict(budget_headers(line, Balance(20 * DOLLAR + 187_500, 2 * DOLLAR), at_ms))
    assert headers == {
        "x-budget-limit-usd": "25.00",
        "x-budget-spent-usd": "20.0001875",
        "x-budget-held-usd": "2.00",
        "x-budget-remaining-usd": "2.9998125",
        "x-budget-reset": "91",
        "ratelimit-policy": '"agent/bot/day/usd";q=25000000;qu="micro-usd";w=86400',
        "ratelimit": '"agent/bot/day/usd";r=2999812;t=91',
    }


def test_a_total_has_no_reset_and_a_lowered_limit_leaves_nothing_rather_than_less():
    (line,) = lines(TOTAL)
    headers = dict(budget_headers(line, Balance(60 * DOLLAR, 0), AT))
    assert headers["x-budget-remaining-usd"] == "0.00"
    assert "x-budget-reset" not in headers
    assert headers["ratelimit"] == '"agent/bot/total/usd";r=0'
    assert reset_seconds(line, AT) is None


def test_requests_and_tokens_are_counted_as_they_are():
    (line,) = lines(budget(9, unit=Unit.REQUESTS, scope=Scope.TEAM, name="t"))
    headers = dict(budget_headers(line, Balance(4, 1), AT))
    assert headers["x-budget-remaining-requests"] == "4"
    assert headers["ratelimit-policy"].startswith('"team/t/day/requests";q=9;qu="requests"')


def test_a_retry_is_never_told_to_come_back_at_once():
    (line,) = lines(DAY)
    assert line.bounds.end_ms is not None
    assert reset_seconds(line, line.bounds.end_ms - 1) == 1
    assert reset_seconds(line, line.bounds.end_ms + 5_000) == 1
