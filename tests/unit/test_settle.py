"""Every ending of a call: what each counter is charged, once, and what is left for a retry."""

import json
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_rules import DOLLAR, Clock, Seen, agent, budget, rules

from extauthz.ledger import (
    ClockSkewError,
    CounterRangeError,
    Hold,
    HoldsMismatchError,
    Outcome,
    Reserve,
    Settle,
)
from extauthz.money import AMOUNT_MAX
from extauthz.policies import MissingUsage
from extauthz.pricing import PriceBook
from extauthz.providers.base import CapturedResponse
from extauthz.service.call_record import CallRecord, HeldPart
from extauthz.service.completed_call import CompletedCall
from extauthz.service.settle import Settler
from extauthz.service.waiting import HeldRoom
from extauthz.store.base import StoreUnavailableError, counter_key
from extauthz.store.memory import MemoryStore

UNITS = {"usd": 5 * DOLLAR, "tokens": 900, "requests": 1, "in_flight": 1}
KEYS = {unit: counter_key("default", unit, 0) for unit in UNITS}
FORGET_MS = 10**13


class Counter:
    """A settler over the store in memory, with one reserved call of five dollars."""

    def __init__(self, store: MemoryStore | None = None, missing=MissingUsage.ESTIMATE) -> None:
        self.clock = Clock()
        self.store = store or MemoryStore(self.clock)
        self.seen = Seen()
        self.rules = rules(agent(budget(100), missing_usage=missing))
        self.settler = Settler(self.rules, self.store, HeldRoom(), self.clock, self.seen)
        self.record = CallRecord(
            "id-1", "d-1", "default", "bot", "openai", "small", self.clock(),
            self.rules.policies.settle_horizon_ms, 5 * DOLLAR,
            tuple(HeldPart(KEYS[unit], unit, held, FORGET_MS) for unit, held in UNITS.items()),
        )  # fmt: skip

    async def reserve(self) -> "Counter":
        holds = tuple(
            Hold(part.key, part.amount, AMOUNT_MAX, FORGET_MS, transient=part.unit == "in_flight")
            for part in self.record.parts
        )
        at_ms = self.clock()
        await self.store.reserve(Reserve("id-1", "default", at_ms, at_ms + 60_000, holds))
        return self

    async def ends(self, **how: object) -> list[CompletedCall]:
        return await self.settler.settle([self.call(**how)])

    def call(self, **how: object) -> CompletedCall:
        ended = CompletedCall(
            self.record, CapturedResponse(), 200, via_upstream=True, left=True, refused=False,
            periodic=False, ended_at_ms=self.clock(),
        )  # fmt: skip
        return replace(ended, **how)  # type: ignore[arg-type]

    async def spent(self) -> dict[str, int]:
        balances = await self.store.balances("default", list(KEYS.values()), self.clock())
        return {
            unit: balance.spent
            for unit, balance in zip(KEYS, balances, strict=True)
            if unit != "in_flight" or balance.spent
        }

    async def held(self) -> int:
        balances = await self.store.balances("default", list(KEYS.values()), self.clock())
        return sum(balance.held for balance in balances)

    @property
    def outcomes(self) -> list[Outcome]:
        return [settlement.outcome for settlement in self.seen.settlements]


def captured(out: int, into: int = 10, **fields: object) -> CapturedResponse:
    usage = {"prompt_tokens": into, "completion_tokens": out}
    whole: dict = {"usage": json.dumps(usage), "model": '"small"', "complete": True}
    return CapturedResponse(**(whole | fields))


FULL = {"usd": 5 * DOLLAR, "tokens": 900, "requests": 1}


async def test_a_call_is_charged_what_it_used_in_each_unit():
    desk = await Counter().reserve()
    assert await desk.ends(captured=captured(3)) == []
    assert await desk.spent() == {"usd": 3 * DOLLAR, "tokens": 13, "requests": 1}
    assert await desk.held() == 0
    assert desk.outcomes == [Outcome.SETTLED]
    assert desk.seen.settlements[0].cost_nanousd == 3 * DOLLAR


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"left": False, "status": 503, "via_upstream": False}, "it never left"),
        ({"refused": True, "status": 503, "via_upstream": False}, "it was refused unread"),
        ({"status": 400}, "the provider refused it"),
        ({"status": 429}, "the provider was busy"),
        ({"status": 529}, "the provider was overloaded"),
    ],
)
async def test_a_call_that_was_proved_free_is_given_back(how, why):
    desk = await Counter().reserve()
    assert await desk.ends(**how) == [], why
    assert await desk.spent() == {"usd": 0, "tokens": 0, "requests": 0}
    assert await desk.held() == 0
    assert desk.outcomes == [Outcome.RELEASED]


@pytest.mark.parametrize(
    "how",
    [
        {"status": 0, "via_upstream": False},
        {"status": 502, "via_upstream": False},
        {"status": 503, "via_upstream": False},
        {"status": 504, "via_upstream": False},
        {"status": 408},
        {},
        {"captured": CapturedResponse(error=True)},
        {"captured": captured(-1)},
        {"captured": captured(True)},
        {"captured": CapturedResponse(usage="{}", complete=True)},
    ],
)
@pytest.mark.parametrize("missing", MissingUsage)
async def test_without_usage_and_without_proof_the_reservation_is_charged(how, missing):
    desk = await Counter(missing=missing).reserve()
    await desk.ends(**how)
    assert await desk.spent() == FULL
    assert await desk.held() == 0


@pytest.mark.parametrize(
    ("missing", "spent"),
    [
        (MissingUsage.ESTIMATE, FULL),
        (MissingUsage.OBSERVED, {"usd": 3 * DOLLAR, "tokens": 13, "requests": 1}),
    ],
)
async def test_of_a_cut_answer_the_policy_says_what_is_charged(missing, spent):
    desk = await Counter(missing=missing).reserve()
    await desk.ends(captured=captured(3, complete=False), status=0, via_upstream=False)
    assert await desk.spent() == spent


async def test_a_cut_answer_that_was_seen_to_use_more_than_was_held_is_charged_that():
    desk = await Counter().reserve()
    await desk.ends(captured=captured(8, complete=False))
    assert (await desk.spent())["usd"] == 8 * DOLLAR


async def test_the_row_keeps_the_rates_that_were_applied_so_that_they_outlive_the_price_list():
    desk = await Counter().reserve()
    await desk.ends(captured=captured(3))
    row = (await desk.store.rows("default", 1, 9))[0]
    said = json.loads(row.particulars)
    assert said["bill"] == [["input_tokens", 10, "0"], ["output_tokens", 3, "1000000"]]
    assert said["price"] == "config"


async def test_the_row_of_a_call_of_unknown_usage_has_no_rates():
    desk = await Counter().reserve()
    await desk.ends()
    row = (await desk.store.rows("default", 1, 9))[0]
    assert "bill" not in json.loads(row.particulars)


async def test_a_cost_above_the_reservation_is_charged_and_told():
    desk = await Counter().reserve()
    await desk.ends(captured=captured(8))
    assert (await desk.spent())["usd"] == 8 * DOLLAR
    assert desk.seen.settlements[0].overshoot_nanousd == 3 * DOLLAR


async def test_the_same_entry_again_charges_nothing_and_another_cost_is_told():
    desk = await Counter().reserve()
    await desk.ends(captured=captured(3))
    await desk.ends(captured=captured(3))
    await desk.ends(captured=captured(4))
    assert await desk.spent() == {"usd": 3 * DOLLAR, "tokens": 13, "requests": 1}
    assert desk.outcomes == [Outcome.SETTLED, Outcome.DUPLICATE, Outcome.CONFLICT]


async def test_a_late_entry_corrects_what_expiry_charged():
    desk = await Counter().reserve()
    desk.clock.now += 61_000
    await desk.store.expire("default", desk.clock(), 86_400_000, 10)
    assert await desk.spent() == FULL
    await desk.ends(captured=captured(3))
    assert (await desk.spent())["usd"] == 3 * DOLLAR
    assert desk.outcomes == [Outcome.LATE]


async def test_a_late_proof_gives_back_what_expiry_charged_under_a_bounded_label():
    desk = await Counter().reserve()
    desk.clock.now += 61_000
    await desk.store.expire("default", desk.clock(), 86_400_000, 10)
    desk.record = desk.record._replace(model="spelled-by-the-client")
    await desk.ends(status=429)
    assert (await desk.spent())["usd"] == 0
    assert desk.seen.settlements[0].priced_model == "unknown"


async def test_an_open_stream_keeps_its_hold_and_what_it_was_seen_to_use_is_what_expiry_charges():
    desk = await Counter().reserve()
    desk.clock.now += 30_000
    await desk.ends(periodic=True, captured=captured(8, complete=False))
    assert await desk.held() == sum(UNITS.values())
    desk.clock.now += 60_000
    assert await desk.store.expire("default", desk.clock(), 86_400_000, 10) == []
    desk.clock.now += 900_000
    await desk.store.expire("default", desk.clock(), 86_400_000, 10)
    assert (await desk.spent())["usd"] == 8 * DOLLAR


async def test_a_call_that_the_store_forgot_is_recovered_from_its_metadata():
    desk = Counter()
    other = Hold(KEYS["usd"], 1, AMOUNT_MAX, FORGET_MS)
    for unit in UNITS:
        hold = other._replace(key=KEYS[unit])
        at_ms = desk.clock()
        await desk.store.reserve(Reserve(unit, "default", at_ms, at_ms + 1, (hold,)))
    await desk.ends(captured=captured(3))
    assert desk.outcomes == [Outcome.RECOVERED]
    assert (await desk.spent())["usd"] == 3 * DOLLAR


async def test_a_call_whose_windows_are_forgotten_is_a_dead_letter_that_is_told():
    desk = Counter()
    forgotten = tuple(p._replace(forget_at_ms=desk.clock() - 1) for p in desk.record.parts)
    desk.record = desk.record._replace(parts=forgotten)
    assert await desk.ends(captured=captured(3)) == []
    assert desk.outcomes == [Outcome.DEAD_LETTER]


@pytest.mark.parametrize("gone", ["provider", "price", "agent"])
async def test_a_call_is_settled_though_the_config_has_changed_since(gone):
    desk = await Counter().reserve()
    policies = desk.rules.policies
    if gone == "provider":
        desk.rules.policies = replace(policies, upstreams={})
    elif gone == "price":
        desk.rules.prices = PriceBook([])
    else:
        desk.rules.policies = replace(policies, agents={})
    await desk.ends(captured=captured(3))
    spent = await desk.spent()
    assert spent["usd"] == (3 if gone == "agent" else 5) * DOLLAR
    assert spent["tokens"] == (900 if gone == "provider" else 13)
    assert await desk.held() == 0


async def test_usage_that_contradicts_itself_is_unknown_in_every_unit():
    desk = await Counter().reserve()
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    desk.rules.prices = PriceBook([])
    desk.record = desk.record._replace(model="gpt-4o")
    await desk.ends(captured=captured(1, usage=json.dumps(usage), model=None))
    assert await desk.spent() == FULL


async def test_the_served_model_decides_the_price():
    desk = await Counter().reserve()
    desk.record = desk.record._replace(model="gpt-4.1-mini")
    await desk.ends(captured=captured(1000, 1000, model='"gpt-4.1-2025-04-14"'))
    assert (await desk.spent())["usd"] == 1000 * 2_000 + 1000 * 8_000
    assert desk.seen.settlements[0].priced_model == "gpt-4.1"


@pytest.mark.parametrize("turned", [False, True])
async def test_a_call_over_which_the_price_changed_is_charged_the_dearer(turned):
    """`gpt-5.6-luna` costs a fifth from the thirtieth on: 0.2 USD per million tokens in."""
    desk = await Counter().reserve()
    before, after = (
        int(datetime.fromisoformat(f"2026-07-{day}T00:00:00+00:00").timestamp()) * 1000
        for day in (29, 31)
    )
    begun, ended = (after, before) if turned else (before, after)
    desk.record = desk.record._replace(model="gpt-5.6-luna", reserved_at_ms=begun)
    await desk.ends(captured=captured(0, 1000, model='"gpt-5.6-luna"'), ended_at_ms=ended)
    assert (await desk.spent())["usd"] == 1000 * 1_000


class Away(MemoryStore):
    """A store that is away for its first calls, or whose answers are errors."""

    def __init__(self, *errors: Exception) -> None:
        self.clock = Clock()
        super().__init__(self.clock)
        self._errors = list(errors)

    async def settle_many(self, commands):
        if self._errors:
            return [self._errors.pop(0) for _ in commands]
        return await super().settle_many(commands)

    async def release(self, command):
        if self._errors:
            raise self._errors.pop(0)
        return await super().release(command)

    async def renew(self, command):
        if self._errors:
            raise self._errors.pop(0)
        return await super().renew(command)


HOWS = {
    "settled": {"captured": captured(3)},
    "released": {"status": 429},
    "renewed": {"periodic": True},
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("error", [StoreUnavailableError("away"), ClockSkewError("off")])
async def test_what_the_store_did_not_take_is_returned_and_taken_when_it_is_tried_again(how, error):
    desk = await Counter(Away(error)).reserve()
    left = await desk.ends(**HOWS[how])
    assert left == [desk.call(**HOWS[how])]
    assert desk.seen.settlements == []
    assert await desk.settler.settle(left) == []


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("error", [HoldsMismatchError("odd"), CounterRangeError("full")])
async def test_what_the_ledger_cannot_apply_is_told_and_never_tried_again(how, error):
    desk = await Counter(Away(error)).reserve()
    assert await desk.ends(**HOWS[how]) == []
    assert desk.outcomes == ([] if how == "renewed" else [Outcome.DEAD_LETTER])


async def test_one_call_that_cannot_be_settled_keeps_no_other_from_it():
    desk = await Counter().reserve()
    odd = desk.record._replace(parts=(desk.record.parts[0]._replace(key="of another org"),))
    left = await desk.settler.settle(
        [replace(desk.call(captured=captured(1)), record=odd), desk.call(captured=captured(3))]
    )
    assert left == []
    assert (await desk.spent())["usd"] == 3 * DOLLAR


counts = st.integers(0, 10**9)


@given(counts, counts, st.booleans(), st.sampled_from(MissingUsage), st.integers(0, 599))
async def test_whatever_is_told_no_charge_is_negative_or_beyond_the_ledger(
    into, out, complete, missing, status
):
    desk = Counter(missing=missing)
    _, command = desk.settler._price(
        desk.call(captured=captured(out, into, complete=complete), status=status)
    )
    assert isinstance(command, Settle)
    for part, charge in zip(desk.record.parts, command.charges, strict=True):
        assert type(charge.cost) is int
        assert 0 <= charge.cost <= AMOUNT_MAX
        if not complete and missing is MissingUsage.ESTIMATE and part.unit != "in_flight":
            assert charge.cost >= part.amount
