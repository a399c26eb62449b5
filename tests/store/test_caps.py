"""A call that may be capped: every store chooses the cap and holds what that asks for."""

import asyncio
import json

import pytest
from ledger_calls import DAY_MS, Call, now_ms, tell

from extauthz.ledger import (
    Balance,
    CapRange,
    Change,
    Charge,
    Hold,
    Outcome,
    Override,
    Refused,
    Reserve,
    Reserved,
    Settle,
    Slope,
)
from extauthz.money import AMOUNT_MAX
from extauthz.store.base import LedgerStore

PER_TOKEN = Slope(0, 1000)
"""One unit a token."""


def capped(
    call: Call,
    limits: tuple[int, int],
    *,
    most: int = 1000,
    least: int = 10,
    comfort: int = 100,
    share: int = 250,
    slopes: tuple[Slope | None, Slope | None] = (PER_TOKEN, None),
    fit: tuple[bool, bool] = (True, True),
    enforcing: tuple[bool, bool] = (True, True),
    particulars: str = '{"agent":"bot"}',
    budget_id: str | None = None,
) -> Reserve:
    """A call on two counters; one without a slope holds 1."""
    at_ms = now_ms()
    holds = tuple(
        Hold(
            key,
            1 if slope is None else slope.at(most),
            limit,
            at_ms + DAY_MS,
            enforcing=enforces,
            slope=slope,
            least=slope.at(least) if fits and slope else None,
            budget_id=budget_id,
        )
        for key, limit, slope, fits, enforces in zip(
            call.keys, limits, slopes, fit, enforcing, strict=True
        )
    )
    cap_range = CapRange(most, least, comfort, share, Slope(7, 2500))
    return Reserve(
        call.id,
        call.org,
        at_ms,
        at_ms - 1,
        holds,
        estimate_nanousd=cap_range.cost.at(most),
        particulars=particulars,
        cap_range=cap_range,
    )


async def cap_of(store: LedgerStore, command: Reserve) -> int | None:
    answer = await store.reserve(command)
    if isinstance(answer, Refused):
        return None
    assert isinstance(answer, Reserved)
    assert answer.balances == await store.balances(
        command.org, [hold.key for hold in command.holds], now_ms()
    )
    return answer.output_cap


@pytest.mark.parametrize(
    ("limit", "options", "cap"),
    [
        (100_000, {}, 1000),  # the worst case is a small part of the room
        (4000, {}, 1000),  # just its share
        (3999, {}, 999),  # a little less
        (2000, {}, 500),
        (400, {}, 100),  # its share is what it is comfortable with
        (200, {}, 100),  # comfort goes before share
        (99, {}, 99),  # room goes before comfort
        (10, {}, 10),  # the least
        (9, {}, None),
        (2000, {"share": 1000}, 1000),  # the client named its cap: all of the room
        (999, {"share": 1000}, 999),
        (2000, {"comfort": 0, "least": 700}, 700),  # of use goes before share and comfort
        (699, {"comfort": 0, "least": 700}, None),
        (2000, {"slopes": (Slope(1000, 1000), None)}, 250),  # what is fixed is no room
        (2000, {"slopes": (PER_TOKEN, PER_TOKEN)}, 500),
        (3000, {"slopes": (Slope(0, 1500), None)}, 500),
        (3000, {"slopes": (Slope(0, 2999), None), "share": 1000}, 1000),
        (3000, {"slopes": (Slope(0, 3001), None), "share": 1000}, 999),
        (10, {"slopes": (Slope(10, 0), None)}, 1000),  # of no use to cap it
        (1, {"slopes": (None, None)}, 1000),
    ],
)
async def test_the_cap_is_what_the_rule_says(
    store: LedgerStore, limit: int, options: dict, cap: int | None
) -> None:
    call = Call()
    assert await cap_of(store, capped(call, (limit, limit), **options)) == cap
    assert await store.open_reservations(call.org) == (cap is not None)


async def test_the_tightest_counter_decides(store: LedgerStore) -> None:
    call = Call()
    command = capped(call, (4000, 800), slopes=(PER_TOKEN, PER_TOKEN))

    assert await cap_of(store, command) == 200
    assert await store.balances(call.org, call.keys, now_ms()) == (Balance(0, 200), Balance(0, 200))


async def test_a_strict_counter_needs_room_for_the_worst_case_and_then_holds_no_more_than_the_cap(
    store: LedgerStore,
) -> None:
    slopes = (PER_TOKEN, PER_TOKEN)
    refused, call = Call(), Call()
    strict = {"slopes": slopes, "fit": (True, False)}

    assert await cap_of(store, capped(refused, (2000, 999), **strict)) is None
    assert await cap_of(store, capped(call, (2000, 1000), **strict)) == 500
    assert await store.balances(call.org, call.keys, now_ms()) == (Balance(0, 500), Balance(0, 500))


async def test_a_shadow_counter_caps_nothing(store: LedgerStore) -> None:
    call = Call()
    command = capped(call, (4000, 1), slopes=(PER_TOKEN, PER_TOKEN), enforcing=(True, False))

    assert await cap_of(store, command) == 1000


async def test_a_counter_that_no_cap_helps_refuses(store: LedgerStore) -> None:
    assert await cap_of(store, capped(Call(), (4000, 0))) is None


async def test_a_limit_that_was_set_for_a_while_is_the_room(store: LedgerStore) -> None:
    call, at_ms = Call(), now_ms()
    await store.override(
        Override("o", call.org, at_ms, Change.SET, "day", at_ms + DAY_MS, 80, None)
    )

    assert await cap_of(store, capped(call, (4000, 4000), budget_id="day")) == 80


async def test_the_cap_and_the_cost_under_it_are_in_the_books_and_charged_when_the_lease_runs_out(
    store: LedgerStore,
) -> None:
    call = Call()
    assert await cap_of(store, capped(call, (201, 1), share=1000)) == 201

    (ending,) = await tell(store, call.expire())

    assert ending.charged == (201, 1)
    row = (await store.rows(call.org, 1, 10))[-1]
    assert row.cost_nanousd == 7 + 503  # 502.5, rounded up
    assert json.loads(row.particulars) == {
        "agent": "bot", "estimate_nanousd": "510", "output_cap": "201",
    }  # fmt: skip


async def test_a_capped_call_settles_as_any_other(store: LedgerStore) -> None:
    call, at_ms = Call(), now_ms()
    await store.reserve(capped(call, (201, 1)))
    charges = tuple(Charge(key, 5, at_ms + DAY_MS) for key in call.keys)

    ending = await store.settle(Settle(call.id, call.org, at_ms, at_ms, DAY_MS, charges))

    assert ending.outcome is Outcome.SETTLED
    assert await store.balances(call.org, call.keys, now_ms()) == (Balance(5, 0), Balance(5, 0))


async def test_a_repeat_answers_the_cap_that_was_granted(store: LedgerStore) -> None:
    call = Call()
    command = capped(call, (2000, 1))
    first = await store.reserve(command)

    assert await store.reserve(command) == first
    assert isinstance(first, Reserved)
    assert first.output_cap == 500


async def test_particulars_that_are_none_stay_so(store: LedgerStore) -> None:
    call = Call()
    await store.reserve(capped(call, (2000, 1), particulars=""))
    await tell(store, call.expire())

    assert (await store.rows(call.org, 1, 10))[-1].particulars == ""


async def test_the_largest_amounts_are_capped_to_the_last_unit(store: LedgerStore) -> None:
    """A rate of 2^42 - 1 for a thousand tokens, and a headroom that no cap uses up."""
    call, slope = Call(), Slope(AMOUNT_MAX - 2**42 + 1, 2**42 - 1)
    options = {"slopes": (slope, None), "share": 1000, "comfort": 0}
    limit = AMOUNT_MAX - 1

    cap = await cap_of(store, capped(call, (limit, 1), **options))

    assert cap == 999
    (balance, _) = await store.balances(call.org, call.keys, now_ms())
    assert balance.held == slope.at(999) <= limit


async def test_ten_at_once_are_all_granted_under_caps_that_fit_together(
    store: LedgerStore,
) -> None:
    calls = [Call()]
    calls += [calls[0].sibling() for _ in range(9)]
    worst = 16_384
    options = {"most": worst, "least": 256, "comfort": 4096}

    answers = await asyncio.gather(
        *(store.reserve(capped(call, (5 * worst, 10), **options)) for call in calls)
    )

    caps = [answer.output_cap for answer in answers if isinstance(answer, Reserved)]
    assert len(caps) == 10
    (balance, _) = await store.balances(calls[0].org, calls[0].keys, now_ms())
    assert balance.held == sum(cap for cap in caps if cap) <= 5 * worst
