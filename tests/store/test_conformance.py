"""Every store does what `extauthz.ledger` says: its table row by row, and each of its rules."""

import asyncio
from dataclasses import replace

import pytest
from ledger_calls import (
    DAY_MS,
    TABLE,
    Call,
    Row,
    brought_to,
    event,
    is_as_expected,
    now_ms,
    probed_state,
    state_probe,
    tell,
)

from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
    AlreadyEnded,
    Balance,
    Charge,
    ClockSkewError,
    Ending,
    Hold,
    HoldsMismatchError,
    Outcome,
    Refused,
    Release,
    Reserve,
    Reserved,
    Settle,
    State,
)
from extauthz.money import AMOUNT_MAX
from extauthz.store.base import LedgerStore, counter_key

CLEARLY_OFF_MS = CLOCK_SKEW_MS_MAX + 500


async def standing(store: LedgerStore, call: Call) -> object:
    """All that can be seen of an org from outside."""
    return (
        await store.balances(call.org, call.keys, now_ms()),
        await store.open_reservations(call.org),
        probed_state(await store.reserve(state_probe(call))),
    )


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_each_row_of_the_table(store: LedgerStore, row: Row) -> None:
    call = await brought_to(store, row.start)
    before = await store.balances(call.org, call.keys, now_ms())
    open_before = await store.open_reservations(call.org)

    answer = await tell(store, event(call, row.event))

    assert is_as_expected(row, answer), answer
    assert await store.balances(call.org, call.keys, now_ms()) == (
        Balance(before[0].spent + row.spent, before[0].held + row.held),
        Balance(before[1].spent + row.spent // 10, before[1].held + row.held // 10),
    )
    assert probed_state(await store.reserve(state_probe(call))) is row.then
    opened = {1000: 1, 0: 0, -1000: -1}[row.held]
    assert await store.open_reservations(call.org) == open_before + opened


@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_a_repeat_changes_nothing(store: LedgerStore, row: Row) -> None:
    call = await brought_to(store, row.start)
    command = event(call, row.event)
    first = await tell(store, command)
    before = await standing(store, call)

    second = await tell(store, command)

    assert await standing(store, call) == before
    if isinstance(first, Ending) and first.outcome is not Outcome.DEAD_LETTER:
        assert second.charged == first.charged
        assert second.outcome in (Outcome.DUPLICATE, Outcome.CONFLICT)


@pytest.mark.parametrize("start", ["unknown", "held", "expired", "released", "settled"])
@pytest.mark.parametrize("name", ["reserve", "settle", "release", "renew", "expire"])
@pytest.mark.parametrize("off_ms", [-CLEARLY_OFF_MS, CLEARLY_OFF_MS])
async def test_a_clock_that_is_off_changes_nothing(
    store: LedgerStore, start: str, name: str, off_ms: int
) -> None:
    call = await brought_to(store, start)
    before = await standing(store, call)
    at_ms = now_ms() + off_ms
    command = {
        "reserve": call.reserve(at_ms=at_ms),
        "settle": call.settle(at_ms=at_ms),
        "release": call.release(at_ms=at_ms),
        "renew": call.renew(9999, 999, lease_ms=DAY_MS, at_ms=at_ms),
        "expire": call.expire(at_ms=at_ms),
    }[name]

    with pytest.raises(ClockSkewError):
        await tell(store, command)

    assert await standing(store, call) == before


@pytest.mark.parametrize("off_ms", [300 - CLOCK_SKEW_MS_MAX, CLOCK_SKEW_MS_MAX - 300])
async def test_a_clock_that_is_a_little_off_is_accepted(store: LedgerStore, off_ms: int) -> None:
    call = Call()

    assert isinstance(await store.reserve(call.reserve(at_ms=now_ms() + off_ms)), Reserved)


@pytest.mark.parametrize("start", ["held", "expired", "released"])
@pytest.mark.parametrize("name", ["reserve", "settle", "release"])
async def test_a_command_that_names_other_counters_changes_nothing(
    store: LedgerStore, start: str, name: str
) -> None:
    call = await brought_to(store, start)
    before = await standing(store, call)
    other_keys = tuple(counter_key(call.org, budget, 0) for budget in ("day", "year"))
    at_ms = now_ms()
    later = at_ms + DAY_MS
    is_answered_from_memory = (start, name) in {
        ("expired", "reserve"),
        ("released", "reserve"),
        ("released", "release"),
    }

    async def wrong() -> object:
        if name == "reserve":
            holds = tuple(Hold(key, 1, 10, later) for key in other_keys)
            return await store.reserve(Reserve(call.id, call.org, at_ms, at_ms, holds))
        if name == "settle":
            charges = tuple(Charge(key, 1, later) for key in other_keys)
            return await store.settle(Settle(call.id, call.org, at_ms, at_ms, DAY_MS, charges))
        return await store.release(Release(call.id, call.org, at_ms, DAY_MS, other_keys))

    if is_answered_from_memory:
        await wrong()
    else:
        with pytest.raises(HoldsMismatchError):
            await wrong()

    assert await standing(store, call) == before
    assert await store.balances(call.org, other_keys[1:], now_ms()) == (Balance(),)


@pytest.mark.parametrize("keys", ["one fewer", "one more", "another order"])
async def test_the_counters_of_a_settlement_are_those_of_the_reservation_in_its_order(
    store: LedgerStore, keys: str
) -> None:
    call = await brought_to(store, "held")
    before = await standing(store, call)
    right = call.settle()
    extra = Charge(counter_key(call.org, "year", 0), 1, now_ms() + DAY_MS)
    charges = {
        "one fewer": right.charges[:1],
        "one more": (*right.charges, extra),
        "another order": right.charges[::-1],
    }[keys]

    with pytest.raises(HoldsMismatchError):
        await store.settle(Settle(call.id, call.org, right.at_ms, right.at_ms, DAY_MS, charges))

    assert await standing(store, call) == before


@pytest.mark.parametrize("observed", [(1,), (1, 2, 3)])
async def test_a_renew_that_observed_another_number_of_counters_changes_nothing(
    store: LedgerStore, observed: tuple[int, ...]
) -> None:
    call = await brought_to(store, "held")

    with pytest.raises(HoldsMismatchError):
        await store.renew(call.renew(*observed, lease_ms=DAY_MS))

    (ending,) = await tell(store, call.expire())
    assert ending == Ending(call.id, Outcome.EXPIRED, (1000, 100))


async def test_a_counter_of_another_org_is_refused_before_anything_is_sent(
    store: LedgerStore,
) -> None:
    call, stranger = Call(), Call()
    foreign = Call(org=stranger.org, id=call.id)
    r = foreign.reserve()

    with pytest.raises(ValueError, match="no counter of the org"):
        await store.reserve(Reserve(call.id, call.org, r.at_ms, r.lease_until_ms, r.holds))
    s = foreign.settle()
    wrong = Settle(call.id, call.org, s.at_ms, s.at_ms, DAY_MS, s.charges)
    with pytest.raises(ValueError, match="no counter of the org"):
        await store.settle(wrong)
    (error,) = await store.settle_many([wrong])
    assert isinstance(error, ValueError)
    with pytest.raises(ValueError, match="no counter of the org"):
        await store.balances(call.org, foreign.keys, now_ms())

    assert await store.balances(stranger.org, stranger.keys, now_ms()) == (Balance(), Balance())


@pytest.mark.parametrize("org", ["", "a}b", "{a"])
def test_an_org_whose_keys_would_not_share_a_slot_has_no_counters(org: str) -> None:
    with pytest.raises(ValueError, match="cannot name an org"):
        counter_key(org, "budget", 0)


async def test_one_counter_without_room_refuses_all_of_them(store: LedgerStore) -> None:
    call = await brought_to(store, "unknown")
    before = await standing(store, call)
    first, second = call.reserve().holds
    holds = (first, Hold(second.key, 801, 1500, second.forget_at_ms))

    answer = await store.reserve(Reserve(call.id, call.org, now_ms(), now_ms(), holds))

    assert answer == Refused(call.id, (Balance(5000, 2000), Balance(500, 200)), (10_000, 1500))
    assert await standing(store, call) == before


async def test_a_refused_id_may_try_again_and_be_admitted(store: LedgerStore) -> None:
    call = Call()
    assert isinstance(await store.reserve(call.reserve(limit=10)), Refused)

    assert isinstance(await store.reserve(call.reserve()), Reserved)


async def test_the_last_of_the_room_can_be_used_and_no_more(store: LedgerStore) -> None:
    call = await brought_to(store, "unknown")

    assert isinstance(await store.reserve(call.reserve(3000)), Reserved)
    assert isinstance(await store.reserve(call.sibling().reserve(10)), Refused)


async def test_no_more_is_admitted_after_an_overshoot_not_even_nothing(store: LedgerStore) -> None:
    call = await brought_to(store, "held")
    await store.settle(call.settle(20_000))

    assert isinstance(await store.reserve(call.sibling().reserve(0)), Refused)


async def test_a_shadow_budget_counts_and_never_refuses(store: LedgerStore) -> None:
    call = await brought_to(store, "unknown")

    answer = await store.reserve(call.reserve(20_000, enforcing=(False, False)))

    assert answer == Reserved(call.id, (Balance(5000, 22_000), Balance(500, 2200)), (10_000, 1000))


async def test_a_repeated_reserve_answers_how_things_stand_now(store: LedgerStore) -> None:
    call = Call()
    await store.reserve(call.reserve(1000))
    await store.reserve(call.sibling().reserve(50))

    answer = await store.reserve(call.reserve(1000))

    assert answer == Reserved(call.id, (Balance(0, 1050), Balance(0, 105)), (10_000, 1000))


async def test_a_transient_hold_is_given_back_when_its_lease_runs_out(store: LedgerStore) -> None:
    call = Call()
    await store.reserve(call.reserve(transient=(True, False)))

    (ending,) = await tell(store, call.expire())

    assert ending.charged == (0, 100)
    assert await store.balances(call.org, call.keys, now_ms()) == (Balance(0, 0), Balance(100, 0))


async def test_a_renewed_lease_is_not_due_and_moves_never_back(store: LedgerStore) -> None:
    call = await brought_to(store, "held")

    assert await store.renew(call.renew(lease_ms=DAY_MS))
    assert await store.renew(call.renew(lease_ms=-DAY_MS))

    assert await tell(store, call.expire()) == []


@pytest.mark.parametrize("ends", ["settle", "release", "expire", "expire, settle"])
async def test_an_ending_is_not_forgotten_while_its_call_could_be_recovered(
    store: LedgerStore, ends: str
) -> None:
    call = await brought_to(store, "unknown")
    await store.reserve(replace(call.reserve(), remember_until_ms=now_ms() + DAY_MS))
    for end in ends.split(", "):
        await tell(store, getattr(call, end)(horizon_ms=-60_000))

    assert call.id in await store.reservations(call.org, [call.id])
    ending = await store.settle(call.settle())

    assert ending.outcome is not Outcome.RECOVERED
    assert ending.charged == (700, 70)


async def test_the_highest_observed_cost_is_charged_when_the_lease_runs_out(
    store: LedgerStore,
) -> None:
    call = await brought_to(store, "held")
    await store.renew(call.renew(1500, 10))
    await store.renew(call.renew(10, 150))
    await store.renew(call.renew())

    assert await tell(store, call.expire()) == [Ending(call.id, Outcome.EXPIRED, (1500, 150))]


async def test_leases_expire_oldest_first_and_at_most_as_many_as_asked_for(
    store: LedgerStore,
) -> None:
    calls = [Call(org=Call().org)]
    calls += [calls[0].sibling() for _ in range(3)]
    for call, lease_ms in zip(calls, (-1000, -3000, DAY_MS, -2000), strict=True):
        await store.reserve(call.reserve(lease_ms=lease_ms))
    org = calls[0].org

    first = await store.expire(org, now_ms(), DAY_MS, 2)
    second = await store.expire(org, now_ms(), DAY_MS, 2)

    assert [ending.id for ending in first] == [calls[1].id, calls[3].id]
    assert [ending.id for ending in second] == [calls[0].id]
    assert await store.open_reservations(org) == 1


async def test_an_ended_reservation_past_its_horizon_is_forgotten(store: LedgerStore) -> None:
    call = await brought_to(store, "held")

    await store.settle(call.settle(horizon_ms=-CLEARLY_OFF_MS))

    again = await store.settle(call.settle(age_ms=2 * DAY_MS))
    assert again == Ending(call.id, Outcome.DEAD_LETTER)


async def test_a_release_before_the_reserve_keeps_it_out(store: LedgerStore) -> None:
    call = Call()

    assert await store.release(call.release()) == Ending(call.id, Outcome.RELEASED)

    assert await store.reserve(call.reserve()) == AlreadyEnded(call.id, State.RELEASED)
    assert await store.balances(call.org, call.keys, now_ms()) == (Balance(), Balance())


async def test_a_batch_settles_each_for_itself(store: LedgerStore) -> None:
    held = await brought_to(store, "held")
    settled = held.sibling()
    await store.reserve(settled.reserve())
    await store.settle(settled.settle())
    skewed, lost = held.sibling(), held.sibling()

    answers = await store.settle_many(
        [
            skewed.settle(at_ms=now_ms() - CLEARLY_OFF_MS),
            held.settle(),
            Settle(settled.id, held.org, now_ms(), now_ms(), DAY_MS, settled.settle(1).charges),
            lost.settle(),
            lost.settle(),
        ]
    )

    assert isinstance(answers[0], ClockSkewError)
    assert answers[1:] == [
        Ending(held.id, Outcome.SETTLED, (700, 70)),
        Ending(settled.id, Outcome.CONFLICT, (700, 70)),
        Ending(lost.id, Outcome.RECOVERED, (700, 70)),
        Ending(lost.id, Outcome.DUPLICATE, (700, 70)),
    ]


@pytest.mark.parametrize(
    ("start", "state", "charged"),
    [
        ("held", State.HELD, ()),
        ("expired", State.EXPIRED, (1000, 100)),
        ("released", State.RELEASED, (0, 0)),
        ("released unseen", State.RELEASED, ()),
        ("settled", State.SETTLED, (700, 70)),
        ("recovered", State.SETTLED, (700, 70)),
        ("settled late", State.SETTLED, (700, 70)),
    ],
)
async def test_a_reservation_can_be_looked_up(
    store: LedgerStore, start: str, state: State, charged: tuple[int, ...]
) -> None:
    call = await brought_to(store, start)
    before = await standing(store, call)

    found = await store.reservations(call.org, [call.id, "unknown"])

    assert list(found) == [call.id]
    assert (found[call.id].state, found[call.id].charged) == (state, charged)
    if start in ("held", "expired", "released"):
        assert found[call.id].keys == call.keys
        soon = now_ms() + 29 * DAY_MS
        assert all(forget_at_ms > soon for _, forget_at_ms in found[call.id].counters)
    else:
        assert found[call.id].keys == ()
    assert (call.id in await store.open_ids(call.org)) == (state is State.HELD)
    assert len(await store.open_ids(call.org)) == await store.open_reservations(call.org)
    assert await standing(store, call) == before


async def test_nothing_looked_up_is_nothing_found(store: LedgerStore) -> None:
    assert await store.reservations("org", []) == {}
    assert await store.reservations("org", ["unknown"]) == {}
    assert await store.open_ids("org") == []


async def test_an_empty_batch_is_answered_with_nothing(store: LedgerStore) -> None:
    assert await store.settle_many([]) == []
    assert await store.balances("org", [], now_ms()) == ()


async def test_the_largest_amounts_are_exact_to_the_last_unit(store: LedgerStore) -> None:
    call = Call()
    key, later = call.keys[0], now_ms() + DAY_MS

    async def reserve(id_: str, amount: int) -> object:
        hold = Hold(key, amount, AMOUNT_MAX, later)
        return await store.reserve(Reserve(id_, call.org, now_ms(), now_ms() - 1, (hold,)))

    assert await reserve("a", AMOUNT_MAX - 1) == Reserved(
        "a", (Balance(0, AMOUNT_MAX - 1),), (AMOUNT_MAX,)
    )
    assert await reserve("b", 2) == Refused("b", (Balance(0, AMOUNT_MAX - 1),), (AMOUNT_MAX,))
    assert await reserve("b", 1) == Reserved("b", (Balance(0, AMOUNT_MAX),), (AMOUNT_MAX,))
    charge = Charge(key, AMOUNT_MAX - 3, later)
    ending = await store.settle(Settle("a", call.org, now_ms(), now_ms(), DAY_MS, (charge,)))
    assert ending.charged == (AMOUNT_MAX - 3,)
    assert await store.balances(call.org, [key], now_ms()) == (Balance(AMOUNT_MAX - 3, 1),)
    assert isinstance(await reserve("c", 3), Refused)
    assert isinstance(await reserve("c", 2), Reserved)
    endings = await store.expire(call.org, now_ms(), DAY_MS, 10)
    assert sorted(ending.charged for ending in endings) == [(1,), (2,)]
    assert await store.balances(call.org, [key], now_ms()) == (Balance(AMOUNT_MAX, 0),)


async def test_room_for_four_admits_exactly_four_of_many_at_once(store: LedgerStore) -> None:
    calls = [Call(org=Call().org)]
    calls += [calls[0].sibling() for _ in range(39)]

    answers = await asyncio.gather(*(store.reserve(c.reserve(1000, limit=4999)) for c in calls))

    assert [answer.id for answer in answers] == [call.id for call in calls]
    assert sum(isinstance(answer, Reserved) for answer in answers) == 4
    assert (await store.balances(calls[0].org, calls[0].keys, now_ms()))[0] == Balance(0, 4000)
