"""Check's phases: each refuses for its own reason, in order, and nothing is let through unheld."""

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_rules import DOLLAR, KEY, Desk, agent, budget, call, until

from extauthz.identity import hash_key
from extauthz.ledger import (
    AlreadyEnded,
    Change,
    Charge,
    ClockSkewError,
    CounterRangeError,
    HoldsMismatchError,
    Override,
    Reserve,
    Settle,
    State,
)
from extauthz.policies import OutputCaps, Scope, Unit
from extauthz.reasons import Decision, Reason
from extauthz.service.verdict import CallAttributes, Verdict
from extauthz.store.base import StoreError, StoreUnavailableError
from extauthz.store.memory import MemoryStore
from extauthz.windows import Period, Window

DAY = budget(10)


async def decide(desk: Desk, attributes: CallAttributes) -> Verdict:
    return await desk.authorizer.authorize(attributes)


async def held(desk: Desk) -> int:
    return await desk.memory.open_reservations("default")


async def settle(desk: Desk, verdict: Verdict, cost: int) -> None:
    record = verdict.record
    assert record is not None
    charges = tuple(
        Charge(part.key, 0 if part.unit == "in_flight" else cost, part.forget_at_ms)
        for part in record.parts
    )
    at_ms = desk.clock()
    await desk.memory.settle(
        Settle(record.reservation_id, record.org, at_ms, record.reserved_at_ms, 86_400_000, charges)
    )
    desk.room.notify(part.key for part in record.parts)


async def test_a_call_that_fits_is_let_through_and_its_most_is_held():
    desk = Desk.of(agent(DAY))
    verdict = await decide(desk, call(3))
    assert (verdict.decision, verdict.reason) == (Decision.ALLOW, Reason.OK)
    assert verdict.record is not None
    assert verdict.record.estimate_nanousd == 3 * DOLLAR
    assert [balance.held for balance in verdict.balances] == [3 * DOLLAR]
    assert desk.authorizer.reserving.open_calls == {"r-1": verdict.record}


async def test_a_call_with_fallbacks_counts_on_the_budgets_of_every_model_that_may_answer():
    large = replace(DAY, model="large", explicit_id="large", limit=2 * DOLLAR)
    desk = Desk.of(agent(DAY, large))
    fallback = {"models": ["large"]}

    assert (await decide(desk, call(2, provider="router"))).decision is Decision.ALLOW
    refused = await decide(desk, call(3, provider="router", sent=fallback))
    let_through = await decide(desk, call(2, provider="router", sent=fallback))

    assert refused.reason is Reason.REQUEST_TOO_LARGE
    assert let_through.decision is Decision.ALLOW
    assert [line.hold.amount for line in let_through.lines] == [2 * DOLLAR] * 2
    limits = {"prompt": 0, "completion": 1_000_000, "request": 0}
    assert json.dumps(limits, separators=(",", ":")) in let_through.edits[0].text


@pytest.mark.parametrize(
    ("who", "attributes", "status", "reason"),
    [
        (agent(DAY), call(provider="nobody"), 403, Reason.UNKNOWN_ROUTE),
        (agent(DAY), call(path="/v1/files"), 403, Reason.UNMETERED_ENDPOINT),
        (agent(DAY), call(query="x=1"), 403, Reason.UNMETERED_ENDPOINT),
        (agent(DAY), call(headers={}), 401, Reason.UNKNOWN_AGENT),
        (agent(DAY), call(headers={"x-api-key": "other"}), 401, Reason.UNKNOWN_AGENT),
        (
            agent(DAY),
            call(headers={"x-api-key": "other", "authorization": f"Bearer {KEY}"}),
            401,
            Reason.UNKNOWN_AGENT,
        ),
        (agent(), call(), 403, Reason.AGENT_WITHOUT_BUDGET),
        (agent(replace(DAY, shadow=True)), call(), 403, Reason.AGENT_WITHOUT_BUDGET),
        (agent(replace(DAY, model="large")), call(), 403, Reason.AGENT_WITHOUT_BUDGET),
        (agent(max_in_flight=5), call(), 403, Reason.AGENT_WITHOUT_BUDGET),
        (agent(DAY), call(body=b"{"), 400, Reason.UNPARSEABLE_BODY),
        (agent(DAY), call(body=b'{"n":1,"n":2}'), 400, Reason.AMBIGUOUS_BODY),
        (agent(DAY), call(sent={"models": ["x"]}), 403, Reason.UNMETERED_ENDPOINT),
        (agent(DAY, models_allowed=("large*",)), call(), 403, Reason.MODEL_NOT_ALLOWED),
        (agent(DAY), call(sent={"model": "unheard-of"}), 403, Reason.UNPRICED_MODEL),
        (
            agent(DAY),
            call(provider="router", sent={"models": ["unheard-of"]}),
            403,
            Reason.UNPRICED_MODEL,
        ),
        (
            agent(DAY, models_allowed=("small",)),
            call(provider="router", sent={"models": ["large"]}),
            403,
            Reason.MODEL_NOT_ALLOWED,
        ),
        (agent(DAY), call(sent={"service_tier": "priority"}), 403, Reason.UNPRICED_MODEL),
        (
            agent(DAY),
            call(sent={"model": "gpt-4o-audio-preview", "modalities": ["text", "audio"]}),
            403,
            Reason.UNPRICED_MODEL,
        ),
        (agent(DAY), call(11), 403, Reason.REQUEST_TOO_LARGE),
    ],
)
async def test_each_phase_refuses_for_its_own_reason_and_holds_nothing(
    who, attributes, status, reason
):
    desk = Desk.of(who)
    verdict = await decide(desk, attributes)
    assert (verdict.decision, verdict.status, verdict.reason) == (Decision.DENY, status, reason)
    assert verdict.message
    assert verdict.record is None
    assert await held(desk) == 0
    assert not desk.authorizer.reserving.open_calls


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer unknown"}])
async def test_the_body_of_an_unknown_caller_is_not_even_read(headers):
    desk = Desk.of(agent(DAY))
    await decide(desk, call(headers=headers, body=b"[" * 1000))
    assert desk.reader.bodies == []


async def test_a_body_that_is_not_all_that_the_provider_gets_is_refused_unread():
    desk = Desk.of(agent(DAY))
    verdict = await decide(desk, call(is_whole=False))
    assert (verdict.reason, verdict.status) == (Reason.BODY_TOO_LARGE, 413)
    assert desk.reader.bodies == []


async def test_a_free_endpoint_needs_a_known_agent_and_holds_nothing():
    desk = Desk.of(agent(DAY))
    free = call(method="GET", path="/v1/models", body=b"")
    assert (await decide(desk, free)).decision is Decision.ALLOW
    assert (await decide(desk, replace(free, headers={}))).reason is Reason.UNKNOWN_AGENT
    assert await held(desk) == 0


@pytest.mark.parametrize("query", ["", "beta=true"])
async def test_the_anthropic_sdks_beta_query_is_let_through(query):
    desk = Desk.of(agent(DAY))
    attributes = call(
        provider="anthropic", path="/v1/messages", query=query, headers={"x-api-key": KEY}
    )
    assert (await decide(desk, attributes)).decision is Decision.ALLOW


async def test_a_limit_is_reached_exactly_and_never_passed():
    desk = Desk.of(agent(DAY))
    verdicts = [await decide(desk, call(3)) for _ in range(5)]
    assert [v.decision for v in verdicts] == [Decision.ALLOW] * 3 + [Decision.DENY] * 2
    assert (await decide(desk, call(1))).decision is Decision.ALLOW
    assert (await decide(desk, call(1))).reason is Reason.BUDGET_HELD


async def test_what_is_spent_is_exhausted_and_what_is_held_may_come_back():
    desk = Desk.of(agent(DAY))
    first = await decide(desk, call(6))
    assert (await decide(desk, call(6))).reason is Reason.BUDGET_HELD
    await settle(desk, first, 6 * DOLLAR)
    assert (await decide(desk, call(6))).reason is Reason.BUDGET_EXHAUSTED


async def test_all_budgets_hold_or_none():
    team = budget(4, scope=Scope.TEAM, name="t")
    desk = Desk.of(agent(DAY, team))
    assert (await decide(desk, call(3))).decision is Decision.ALLOW
    denied = await decide(desk, call(3))
    assert denied.reason is Reason.BUDGET_HELD
    assert denied.shown == 1
    assert [balance.held for balance in denied.balances] == [3 * DOLLAR, 3 * DOLLAR]


async def test_a_shadow_budget_counts_and_denies_nothing():
    desk = Desk.of(agent(DAY, budget(2, window=Window(Period.MONTH), shadow=True)))
    assert (await decide(desk, call(2))).decision is Decision.ALLOW
    second = await decide(desk, call(2))
    assert second.decision is Decision.SHADOW_DENY
    assert second.record is not None
    assert [balance.held for balance in second.balances] == [4 * DOLLAR, 4 * DOLLAR]


async def test_tokens_and_requests_are_budgets_of_their_own_unit():
    tokens = budget(3_000, unit=Unit.TOKENS)
    requests = budget(2, unit=Unit.REQUESTS)
    desk = Desk.of(agent(tokens, requests))
    first = await decide(desk, call(5))
    assert first.record is not None
    assert first.estimate is not None
    assert {part.unit: part.amount for part in first.record.parts} == {
        "tokens": first.estimate.tokens,
        "requests": 1,
    }
    assert (await decide(desk, call(5))).decision is Decision.ALLOW
    assert (await decide(desk, call(5))).reason is Reason.BUDGET_HELD


async def test_calls_in_flight_are_bounded():
    desk = Desk.of(agent(DAY, max_in_flight=1))
    first = await decide(desk, call(1))
    assert (await decide(desk, call(1))).reason is Reason.TOO_MANY_IN_FLIGHT
    await settle(desk, first, DOLLAR)
    assert (await decide(desk, call(1))).decision is Decision.ALLOW


@pytest.mark.parametrize("model", ["large", "LARGE"])
async def test_a_budget_for_a_model_counts_its_calls_however_the_name_is_written(model):
    desk = Desk.of(agent(DAY, budget(1, model="large*")))
    assert (await decide(desk, call(2, sent={"model": model}))).reason is Reason.REQUEST_TOO_LARGE
    assert (await decide(desk, call(2))).decision is Decision.ALLOW


async def test_a_default_cap_is_held_and_written_into_the_request():
    desk = Desk.of(agent(DAY, output_caps=OutputCaps(default=4)))
    verdict = await decide(desk, call(sent={"max_tokens": None}))
    assert verdict.estimate is not None
    assert verdict.estimate.nanousd == 4 * DOLLAR
    assert [edit.text for edit in verdict.edits] == ['"max_completion_tokens":4,']
    named = await decide(desk, call(5))
    assert named.estimate is not None
    assert (named.estimate.nanousd, named.edits) == (5 * DOLLAR, ())


async def test_a_call_waits_for_room_that_is_only_held_until_a_settlement_frees_it():
    desk = Desk.of(agent(DAY, hold_wait_ms=1_000))
    first = await decide(desk, call(8))
    waiting = asyncio.create_task(decide(desk, call(5)))
    await until(lambda: desk.room._waiting)
    desk.clock.now += 300
    await settle(desk, first, DOLLAR)
    verdict = await waiting
    assert (verdict.decision, verdict.waited_ms) == (Decision.ALLOW, 300)
    assert verdict.balances[0].spent == DOLLAR


async def test_waiting_ends_when_the_time_is_over():
    desk = Desk.of(agent(DAY, hold_wait_ms=1_000))
    await decide(desk, call(8))
    waiting = asyncio.create_task(decide(desk, call(5)))
    await until(lambda: desk.room._waiting)
    desk.clock.now += 1_000
    desk.room.notify(list(desk.room._waiting))
    assert (await waiting).reason is Reason.BUDGET_HELD


async def test_nobody_waits_for_what_is_spent_or_can_never_fit():
    desk = Desk.of(agent(DAY, hold_wait_ms=10_000))
    await settle(desk, await decide(desk, call(9)), 9 * DOLLAR)
    assert (await decide(desk, call(5))).reason is Reason.BUDGET_EXHAUSTED
    assert (await decide(desk, call(11))).reason is Reason.REQUEST_TOO_LARGE


async def test_a_call_counts_in_the_window_in_which_it_is_held_at_last():
    desk = Desk.of(agent(DAY, hold_wait_ms=1_000))
    desk.clock.now = 1_790_035_199_500  # half a second before midnight, UTC
    await decide(desk, call(8))
    waiting = asyncio.create_task(decide(desk, call(5)))
    await until(lambda: desk.room._waiting)
    desk.clock.now += 600
    desk.room.notify(list(desk.room._waiting))
    verdict = await waiting
    assert verdict.decision is Decision.ALLOW
    assert verdict.lines[0].bounds.start_ms == 1_790_035_200_000


async def test_a_client_that_leaves_while_waiting_for_room_waits_no_more():
    desk = Desk.of(agent(DAY, hold_wait_ms=10_000))
    await decide(desk, call(8))
    waiting = asyncio.create_task(decide(desk, call(5)))
    await until(lambda: desk.room._waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not desk.room._waiting
    assert not desk.room.is_full
    assert desk.abandoned.commands == []


class Slow(MemoryStore):
    """Carries a reserve out, but does not answer."""

    def __init__(self) -> None:
        super().__init__(lambda: 1_790_000_000_000)
        self.asked: list[Reserve] = []

    async def reserve(self, command):
        self.asked.append(command)
        await super().reserve(command)
        await asyncio.Event().wait()


async def test_a_client_that_leaves_while_the_store_is_asked_gets_its_hold_given_back():
    store = Slow()
    desk = Desk.of(agent(DAY), store)
    asking = asyncio.create_task(decide(desk, call(5)))
    await until(lambda: store.asked)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (command,) = desk.abandoned.commands
    assert command.id == store.asked[0].id
    assert command.keys == tuple(hold.key for hold in store.asked[0].holds)
    await store.release(command)
    assert await store.open_reservations("default") == 0


class Failing(MemoryStore):
    def __init__(self, error: BaseException | AlreadyEnded) -> None:
        super().__init__()
        self._error = error

    async def reserve(self, command):
        if isinstance(self._error, AlreadyEnded):
            return AlreadyEnded(command.id, self._error.state)
        raise self._error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreError("away"), Reason.STORE_UNAVAILABLE),
        (StoreUnavailableError("away"), Reason.STORE_UNAVAILABLE),
        (ClockSkewError("off"), Reason.STORE_UNAVAILABLE),
        (CounterRangeError("full"), Reason.STORE_UNAVAILABLE),
        (AlreadyEnded("", State.RELEASED), Reason.STORE_UNAVAILABLE),
        (AlreadyEnded("", State.SETTLED), Reason.STORE_UNAVAILABLE),
        (HoldsMismatchError("odd"), Reason.SERVICE_UNAVAILABLE),
        (ValueError("odd"), Reason.SERVICE_UNAVAILABLE),
        (RuntimeError("odd"), Reason.SERVICE_UNAVAILABLE),
    ],
)
async def test_whatever_fails_nothing_is_let_through_and_the_hold_is_given_back(error, reason):
    desk = Desk.of(agent(DAY), Failing(error))
    verdict = await decide(desk, call(5))
    assert (verdict.decision, verdict.status, verdict.reason) == (Decision.ERROR, 503, reason)
    assert len(desk.abandoned.commands) == 1
    assert not desk.authorizer.reserving.open_calls


async def test_a_reader_that_fails_lets_nothing_through_and_its_words_are_not_logged(caplog):
    desk = Desk.of(agent(DAY))

    async def fail(*_: object, **__: object) -> None:
        raise OSError("expected a number, found 'a prompt'")

    desk.reader.read = fail  # type: ignore[method-assign, assignment]
    verdict = await decide(desk, call(5))
    assert (verdict.decision, verdict.status) == (Decision.ERROR, 503)
    assert "OSError" in caplog.text
    assert "in fail" in caplog.text
    assert "a prompt" not in caplog.text


async def test_a_call_without_a_request_id_is_held_but_is_no_index():
    desk = Desk.of(agent(DAY))
    verdict = await decide(desk, call(5, request_id=""))
    assert verdict.record is not None
    assert desk.authorizer.reserving.open_calls == {}


texts = st.text(st.characters(), max_size=40)
names = st.sampled_from(["openai", "anthropic", "", "x"])
paths = st.sampled_from(["/v1/chat/completions", "/v1/messages", "/v1/models", "/"]) | texts
header_maps = st.dictionaries(
    st.sampled_from(["authorization", "x-api-key", "x-request-id"]),
    st.sampled_from([KEY, f"Bearer {KEY}"]) | texts,
)
request_bodies = st.binary(max_size=60) | st.sampled_from(
    [call(1).body, call(2**40).body, b'{"model":"small","messages":[{"content":[[]]}]}']
)


odd_calls = st.builds(
    CallAttributes,
    provider=names,
    method=st.sampled_from(["GET", "POST", ""]),
    path=paths,
    query=texts | st.just(""),
    headers=header_maps,
    body=request_bodies,
    request_id=texts,
)


@given(odd_calls)
async def test_odd_calls_get_a_verdict_and_never_an_error_of_ours(attributes):
    desk = Desk.of(agent(DAY))
    verdict = await decide(desk, attributes)
    assert verdict.decision is not Decision.ERROR
    assert (verdict.decision is Decision.ALLOW) == (verdict.reason is Reason.OK)


@given(st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(0, 6)), max_size=25))
async def test_whatever_is_asked_and_spent_no_grant_passes_the_limit(events):
    desk = Desk.of(agent(DAY, budget(15, scope=Scope.TEAM, name="t", window=Window(Period.TOTAL))))
    for most, spends in events:
        verdict = await decide(desk, call(most))
        if verdict.record is None:
            continue
        for line, balance in zip(verdict.lines, verdict.balances, strict=True):
            assert balance.spent + balance.held <= line.hold.limit
        if spends is not None:
            await settle(desk, verdict, min(spends, most) * DOLLAR)


async def override(desk: Desk, change: Change, target: str, **fields: object) -> None:
    command = Override(
        f"o-{change.value}", "default", desk.clock(), change, target,
        forget_at_ms=desk.clock() + 86_400_000, **fields,
    )  # type: ignore[arg-type] # fmt: skip
    await desk.memory.override(command)


@pytest.mark.parametrize("target", ["agent:bot", "team:crew"])
async def test_a_paused_agent_or_team_is_told_until_when(target):
    desk = Desk.of(agent(DAY, team="crew"))
    await override(desk, Change.PAUSE, target, until_ms=desk.clock() + 60_000)
    verdict = await decide(desk, call(1))
    assert (verdict.decision, verdict.status, verdict.reason) == (
        Decision.DENY, 403, Reason.AGENT_PAUSED,
    )  # fmt: skip
    assert verdict.message == "this agent is paused until 2026-09-21T14:14:20Z"
    assert await held(desk) == 0
    assert desk.abandoned.commands == []
    desk.clock.now += 60_000
    assert (await decide(desk, call(1))).decision is Decision.ALLOW


async def test_a_pause_without_an_end_says_who_can_end_it():
    desk = Desk.of(agent(DAY))
    await override(desk, Change.PAUSE, "agent:bot")
    assert "until an operator resumes it" in (await decide(desk, call(1))).message


async def test_a_call_that_waits_for_room_is_refused_when_its_agent_is_paused_meanwhile():
    desk = Desk.of(agent(DAY, hold_wait_ms=1_000))
    await decide(desk, call(8))
    waiting = asyncio.create_task(decide(desk, call(5)))
    await until(lambda: desk.room._waiting)
    await override(desk, Change.PAUSE, "agent:bot")
    desk.room.notify(list(desk.room._waiting))
    assert (await waiting).reason is Reason.AGENT_PAUSED


async def test_the_limit_in_force_decides_and_is_the_one_that_is_shown():
    desk = Desk.of(agent(DAY))
    await override(desk, Change.SET, DAY.id, amount=3 * DOLLAR)
    refused = await decide(desk, call(4))
    assert refused.reason is Reason.REQUEST_TOO_LARGE
    assert refused.lines[0].hold.limit == 3 * DOLLAR
    await override(desk, Change.TOP_UP, DAY.id, amount=10 * DOLLAR)
    allowed = await decide(desk, call(12))
    assert allowed.decision is Decision.ALLOW
    assert allowed.lines[0].hold.limit == 13 * DOLLAR


async def test_a_rolling_window_refuses_until_what_was_spent_has_left_it():
    desk = Desk.of(agent(budget(10, window=Window(Period.ROLLING, length="1h"))))
    await settle(desk, await decide(desk, call(9)), 9 * DOLLAR)
    desk.clock.now += 3_600_000
    assert (await decide(desk, call(5))).reason is Reason.BUDGET_EXHAUSTED
    desk.clock.now += 60_000
    assert (await decide(desk, call(5))).decision is Decision.ALLOW


def with_budgets(desk: Desk, **fields: object) -> Desk:
    desk.authorizer.rules.policies = replace(desk.authorizer.rules.policies, **fields)
    return desk


OF_KEY = budget(2, scope=Scope.KEY, name="0123456789ab")
OF_PROVIDER = budget(3, scope=Scope.PROVIDER, name="openai")
OF_MODEL = budget(4, scope=Scope.MODEL, name="sma*", model="sma*")


async def test_a_call_holds_on_the_budgets_of_its_key_provider_and_model_too():
    desk = with_budgets(
        Desk.of(agent(DAY)),
        budgets_of_key={hash_key(KEY): (OF_KEY,)},
        budgets_of_provider={"openai": (OF_PROVIDER,), "anthropic": (replace(OF_PROVIDER),)},
        budgets_of_models=(OF_MODEL, replace(OF_MODEL, name="lar*", model="lar*")),
    )
    verdict = await decide(desk, call(1))
    assert [line.budget.id for line in verdict.lines if line.budget] == [
        "agent/bot/day/usd", "key/0123456789ab/day/usd", "provider/openai/day/usd",
        "model/sma*/day/usd",
    ]  # fmt: skip
    assert [balance.held for balance in verdict.balances] == [DOLLAR] * 4
    assert (await decide(desk, call(2))).reason is Reason.BUDGET_HELD


async def test_a_budget_of_the_key_is_one_that_an_agent_has():
    desk = with_budgets(Desk.of(agent()), budgets_of_key={hash_key(KEY): (OF_KEY,)})
    assert (await decide(desk, call(1))).decision is Decision.ALLOW


async def test_a_budget_of_the_provider_or_model_lets_nobody_in():
    shared = {"budgets_of_provider": {"openai": (OF_PROVIDER,)}, "budgets_of_models": (OF_MODEL,)}
    for who in (agent(), agent(replace(DAY, model="large"))):
        desk = with_budgets(Desk.of(who), **shared)
        assert (await decide(desk, call(1))).reason is Reason.AGENT_WITHOUT_BUDGET
