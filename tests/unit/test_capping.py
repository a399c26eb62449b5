"""A call may be shortened to fit: never below what is of use, never above what was asked for."""

import json
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_rules import DOLLAR, KEY, PRICE, Desk, agent, budget, call

from extauthz.ledger import RATE_MAX, CapRange, Slope
from extauthz.money import AMOUNT_MAX
from extauthz.policies import OutputCaps, Unit
from extauthz.pricing import OwnPrice, PriceBook
from extauthz.providers.base import RequestFacts
from extauthz.reasons import Decision, Reason
from extauthz.service.verdict import CallAttributes, Verdict
from extauthz.usage import Exactness, UsageReport
from extauthz.windows import Period, Window

CAPS = OutputCaps(least=3, comfort=10, share_permille=250)


def fitting(*budgets, caps: OutputCaps = CAPS, **fields):
    return Desk.of(agent(*(replace(b, fit=True) for b in budgets), output_caps=caps, **fields))


async def decide(desk: Desk, attributes: CallAttributes) -> Verdict:
    return await desk.authorizer.authorize(attributes)


def sent(attributes: CallAttributes, verdict: Verdict) -> dict:
    """The body as Envoy sends it on."""
    body = attributes.body
    for edit in reversed(verdict.edits):
        body = body[: edit.offset] + edit.text.encode() + body[edit.offset + edit.dropped :]
    return json.loads(body)


UNCAPPED = call(sent={"max_tokens": None})
NAMED = call(100)


async def test_a_call_that_fits_comfortably_is_not_touched():
    desk = fitting(budget(1000))
    verdict = await decide(desk, NAMED)
    assert (verdict.decision, verdict.output_cap, verdict.edits) == (Decision.ALLOW, None, ())
    assert verdict.record is not None
    assert verdict.record.estimate_nanousd == 100 * DOLLAR


async def test_a_clients_own_cap_is_lowered_to_all_the_room_that_is_left():
    desk = fitting(budget(40))
    verdict = await decide(desk, NAMED)
    assert verdict.output_cap == 40
    assert sent(NAMED, verdict) == json.loads(NAMED.body) | {"max_tokens": 40}
    assert verdict.record is not None
    assert verdict.record.estimate_nanousd == 40 * DOLLAR
    assert verdict.record.output_cap == 40
    assert [part.amount for part in verdict.record.parts] == [40 * DOLLAR]
    assert [balance.held for balance in verdict.balances] == [40 * DOLLAR]
    particulars = json.loads(verdict.record.particulars())
    assert particulars["output_cap"] == "40"


async def test_a_call_that_names_no_cap_gets_a_share_and_room_for_others_is_left():
    desk = fitting(budget(80), caps=replace(CAPS, default_of_all=100))
    verdicts = [await decide(desk, UNCAPPED) for _ in range(4)]
    assert [v.output_cap for v in verdicts] == [20, 15, 11, 10]
    assert sent(UNCAPPED, verdicts[0])["max_completion_tokens"] == 20


async def test_near_the_limit_caps_shrink_and_then_calls_are_refused():
    desk = fitting(budget(25))
    verdicts = [await decide(desk, call(10)) for _ in range(4)]
    assert [v.output_cap for v in verdicts] == [None, None, 5, None]
    assert verdicts[3].reason is Reason.BUDGET_HELD


async def test_less_room_than_is_of_use_is_none():
    desk = fitting(budget(2))
    assert (await decide(desk, NAMED)).reason is Reason.REQUEST_TOO_LARGE
    short = await decide(desk, call(2))
    assert (short.decision, short.output_cap) == (Decision.ALLOW, None)


async def test_of_several_answers_each_gets_its_part():
    desk = fitting(budget(40))
    several = call(100, sent={"n": 4})
    verdict = await decide(desk, several)
    assert verdict.output_cap == 10
    assert verdict.record is not None
    assert verdict.record.estimate_nanousd == 40 * DOLLAR


async def test_a_strict_budget_needs_room_for_the_worst_case_whatever_the_others_do():
    strict = budget(99, window=Window(Period.MONTH))
    who = agent(replace(budget(40), fit=True), strict, output_caps=CAPS)
    assert (await decide(Desk.of(who), NAMED)).reason is Reason.REQUEST_TOO_LARGE
    strict = replace(strict, limit=100 * DOLLAR)
    roomy = agent(replace(budget(40), fit=True), strict, output_caps=CAPS)
    verdict = await decide(Desk.of(roomy), NAMED)
    assert verdict.record is not None
    assert [part.amount for part in verdict.record.parts] == [40 * DOLLAR] * 2


async def test_a_shadow_budget_shortens_nothing_and_counts_what_it_would_have_refused():
    shadow = budget(2, window=Window(Period.MONTH), shadow=True)
    verdict = await decide(fitting(budget(200), shadow), NAMED)
    assert (verdict.decision, verdict.output_cap) == (Decision.SHADOW_DENY, None)
    kinder = await decide(fitting(budget(200), replace(shadow, limit=50 * DOLLAR)), NAMED)
    assert (kinder.decision, kinder.output_cap) == (Decision.ALLOW, None)


async def test_a_budget_of_tokens_caps_as_well_and_one_of_requests_cannot():
    tokens = budget(5_000, unit=Unit.TOKENS)
    desk = fitting(tokens, budget(2, unit=Unit.REQUESTS))
    verdict = await decide(desk, call(4_000))
    assert verdict.output_cap is not None
    assert verdict.estimate is not None
    assert verdict.output_cap == 5_000 - verdict.estimate.input_tokens
    assert verdict.balances[0].held == 5_000


async def test_a_cap_leaves_room_to_answer_beside_what_the_client_lets_it_think():
    def thinks(tokens: int) -> CallAttributes:
        return call(
            provider="anthropic",
            path="/v1/messages",
            headers={"x-api-key": KEY},
            sent={"max_tokens": 100, "thinking": {"type": "enabled", "budget_tokens": tokens}},
        )

    desk = fitting(budget(40))
    assert (await decide(desk, thinks(38))).reason is Reason.REQUEST_TOO_LARGE
    verdict = await decide(desk, thinks(37))
    assert verdict.output_cap == 40
    body = sent(thinks(37), verdict)
    assert (body["max_tokens"], body["thinking"]["budget_tokens"]) == (40, 37)


async def test_of_two_caps_each_is_lowered_and_none_is_raised():
    desk = fitting(budget(40))
    two = call(100, sent={"max_completion_tokens": 30})
    verdict = await decide(desk, two)
    assert verdict.output_cap == 40
    body = sent(two, verdict)
    assert (body["max_tokens"], body["max_completion_tokens"]) == (40, 30)


async def test_a_model_that_passes_over_caps_needs_room_for_all_that_it_can_answer():
    desk = fitting(budget(40), caps=replace(CAPS, default_of_all=5))
    desk.authorizer.rules.prices = PriceBook(
        [OwnPrice("openai", "grok*", Decimal(0), PRICE, max_output_tokens=50)]
    )
    sent_to = {"model": "grok-4"}
    for capped in (call(10, sent=sent_to), call(sent=sent_to | {"max_tokens": None})):
        assert (await decide(desk, capped)).reason is Reason.REQUEST_TOO_LARGE
    roomy = fitting(budget(50))
    roomy.authorizer.rules.prices = desk.authorizer.rules.prices
    verdict = await decide(roomy, call(10, sent=sent_to))
    assert (verdict.decision, verdict.edits) == (Decision.ALLOW, ())
    assert verdict.record is not None
    assert verdict.record.estimate_nanousd == 50 * DOLLAR


async def test_a_default_is_no_more_than_the_model_answers_and_leaves_room_beside_its_thoughts():
    defaulted = replace(CAPS, default_of_all=10_000)
    desk = fitting(budget(10_000), caps=defaulted)
    own = OwnPrice("openai", "small", Decimal(0), PRICE, max_output_tokens=500)
    desk.authorizer.rules.prices = PriceBook([own])
    assert (await decide(desk, UNCAPPED)).output_cap == 500
    thinking = call(
        provider="anthropic",
        path="/v1/messages",
        headers={"x-api-key": KEY},
        sent={"max_tokens": None, "thinking": {"type": "enabled", "budget_tokens": 60}},
    )
    short = fitting(budget(500), caps=replace(CAPS, default_of_all=20))
    assert (await decide(short, thinking)).output_cap == 60 + CAPS.least


async def test_where_nobody_knows_which_cap_a_model_takes_no_more_than_is_comfortable_is_written():
    caps = {}
    for most in (None, 1000):
        desk = fitting(budget(800), caps=replace(CAPS, comfort=50))
        own = OwnPrice(
            "openai", "small", Decimal(0), PRICE, context_window=1000, max_output_tokens=most
        )
        desk.authorizer.rules.prices = PriceBook([own])
        caps[most] = (await decide(desk, UNCAPPED)).output_cap
    assert caps == {None: 50, 1000: 200}


async def test_a_default_that_fits_is_written_as_it_is():
    desk = fitting(budget(1000), caps=replace(CAPS, default_of_all=100))
    verdict = await decide(desk, UNCAPPED)
    assert (verdict.output_cap, verdict.default_cap) == (100, 100)
    assert sent(UNCAPPED, verdict)["max_completion_tokens"] == 100


@given(
    input_price=st.decimals("0", "100", places=6),
    output_price=st.decimals("0", "1000", places=7),
    answers=st.integers(1, 8),
    input_tokens=st.integers(0, 10**6),
    extra=st.integers(0, 1000),
    most=st.integers(1, 200_000),
    part=st.fractions(0, 1),
)
def test_what_is_held_under_a_cap_is_never_below_what_the_call_can_cost_under_it(
    input_price, output_price, answers, input_tokens, extra, most, part
):
    priced = PriceBook([OwnPrice("p", "m", input_price, output_price)]).find("p", "openai", "m")
    assert priced is not None
    facts = RequestFacts("m", False, input_tokens, most, answers, extra)
    estimate = priced.estimate(facts, 0, None)
    cap = max(1, int(most * part))
    output_tokens = cap * answers + extra
    used = UsageReport(
        Exactness.EXACT, {"input_tokens": input_tokens, "output_tokens": output_tokens}
    )
    held = estimate.nanousd_under.at(cap)
    cost = priced.cost(used, 0)
    assert cost <= held
    # Two more roundings than a bill has, and less than a thousandth of a nano-USD a token.
    assert held <= cost + 2 + cap // 1000
    assert estimate.tokens_under.at(cap) == input_tokens + output_tokens


@given(
    slope=st.builds(Slope, st.integers(0, AMOUNT_MAX), st.integers(1, RATE_MAX)),
    headroom=st.integers(0, AMOUNT_MAX),
)
def test_the_room_is_the_largest_cap_whose_amount_is_within_the_headroom(slope, headroom):
    headroom = min(slope.fixed + headroom, AMOUNT_MAX)
    room = slope.room_in(headroom)
    assert slope.at(room) <= headroom
    assert room == 2**40 or slope.at(room + 1) > headroom


@pytest.mark.parametrize("room", [10, 99, 100, 1000, 10**6])
def test_a_cap_is_never_above_the_worst_case_nor_the_room_nor_below_the_least(room):
    limits = CapRange(500, 10, 100, 250, Slope(0, 0))
    assert 10 <= limits.chosen(room) <= min(500, room)


def test_a_price_beyond_what_a_store_counts_makes_a_call_strict():
    priced = PriceBook([OwnPrice("p", "m", Decimal(0), Decimal(10**6))]).find("p", "openai", "m")
    assert priced is not None
    estimate = priced.estimate(RequestFacts("m", False, 0, 10**7), 0, None)
    assert not estimate.nanousd_under.is_exact_up_to(10**7)
