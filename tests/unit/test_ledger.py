"""The specification itself, row by row; `tests/store` holds every store to the same rows."""

import copy
from typing import Any

import pytest
from ledger_calls import (
    DAY_MS,
    STARTS,
    TABLE,
    Call,
    Row,
    event,
    is_as_expected,
    now_ms,
    probed_state,
    state_probe,
    tell_ledger,
)

from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
    COUNTER_MAX,
    Balance,
    Charge,
    CounterRangeError,
    Hold,
    HoldsMismatchError,
    Ledger,
    Outcome,
    Refused,
    Release,
    Renew,
    Reserve,
    Reserved,
    Settle,
    State,
    fits,
)
from extauthz.money import AMOUNT_MAX

BEFORE = Balance(spent=5000, held=2000)
"""What other calls have left on the first counter when a row starts."""


def ledger_with_others(call: Call) -> Ledger:
    ledger = Ledger()
    for other, end in ((call.sibling(), True), (call.sibling(), False)):
        ledger.reserve(other.reserve(2000, lease_ms=DAY_MS))
        if end:
            ledger.settle(other.settle(5000))
    return ledger


def brought_to(start: str) -> tuple[Ledger, Call]:
    call = Call()
    ledger = ledger_with_others(call)
    for name in STARTS[start]:
        tell_ledger(ledger, event(call, name))
    return ledger, call


def standing(ledger: Ledger) -> Any:
    return copy.deepcopy((ledger.counters, ledger.reservations))


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_each_row_of_the_table(row: Row) -> None:
    ledger, call = brought_to(row.start)
    before = ledger.balances(call.keys, now_ms())

    answer = tell_ledger(ledger, event(call, row.event))

    assert is_as_expected(row, answer), answer
    assert probed_state(ledger.reserve(state_probe(call))) is row.then
    assert ledger.balances(call.keys, now_ms()) == (
        Balance(before[0].spent + row.spent, before[0].held + row.held),
        Balance(before[1].spent + row.spent // 10, before[1].held + row.held // 10),
    )


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_a_repeat_of_an_ending_changes_nothing(row: Row) -> None:
    ledger, call = brought_to(row.start)
    command = event(call, row.event)
    tell_ledger(ledger, command)
    before = standing(ledger)

    tell_ledger(ledger, command)

    assert standing(ledger) == before


@pytest.mark.parametrize("start", ["held", "expired", "released"])
@pytest.mark.parametrize("name", ["reserve", "settle", "release"])
def test_a_command_that_names_other_counters_changes_nothing(start: str, name: str) -> None:
    ledger, call = brought_to(start)
    command = event(Call(id=call.id), name)
    before = standing(ledger)
    is_answered_from_memory = (start, name) in {
        ("expired", "reserve"),
        ("released", "reserve"),
        ("released", "release"),
    }

    if is_answered_from_memory:
        tell_ledger(ledger, command)
    else:
        with pytest.raises(HoldsMismatchError):
            tell_ledger(ledger, command)

    assert standing(ledger) == before


def test_a_renew_that_observed_another_number_of_counters_changes_nothing() -> None:
    ledger, call = brought_to("held")
    before = standing(ledger)

    with pytest.raises(HoldsMismatchError):
        ledger.renew(call.renew(1, 2, 3, lease_ms=DAY_MS))

    assert standing(ledger) == before


@pytest.mark.parametrize("field", ["spent", "held"])
@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("unknown", "reserve"),
        ("unknown", "settle"),
        ("held", "settle"),
        ("held", "release"),
        ("held", "expire"),
        ("released unseen", "settle"),
    ],
)
def test_a_counter_out_of_range_stops_a_command_before_it_changes_anything(
    field: str, start: str, name: str
) -> None:
    ledger, call = brought_to(start)
    setattr(ledger.counters[call.keys[1]], field, COUNTER_MAX)
    command = event(call, name)
    if isinstance(command, Reserve):  # an enforcing budget would just refuse it
        command = call.reserve(enforcing=(True, False))
    before = standing(ledger)

    with pytest.raises(CounterRangeError):
        tell_ledger(ledger, command)

    assert standing(ledger) == before


def test_one_counter_without_room_refuses_all_of_them() -> None:
    ledger, call = brought_to("unknown")
    holds = list(call.reserve().holds)
    holds[1] = Hold(holds[1].key, 801, 1500, holds[1].forget_at_ms)
    before = standing(ledger)

    answer = ledger.reserve(Reserve(call.id, call.org, now_ms(), now_ms(), tuple(holds)))

    assert answer == Refused(call.id, (BEFORE, Balance(500, 200)), (10_000, 1500))
    assert standing(ledger) == before


def test_a_reservation_may_use_the_last_of_the_room() -> None:
    ledger, call = brought_to("unknown")

    assert isinstance(ledger.reserve(call.reserve(3000)), Reserved)
    assert isinstance(ledger.reserve(call.sibling().reserve(10)), Refused)


def test_a_shadow_budget_counts_and_never_refuses() -> None:
    ledger, call = brought_to("unknown")

    answer = ledger.reserve(call.reserve(20_000, enforcing=(False, False)))

    assert answer == Reserved(call.id, (Balance(5000, 22_000), Balance(500, 2200)), (10_000, 1000))


def test_a_transient_hold_is_given_back_when_its_lease_runs_out() -> None:
    call = Call()
    ledger = Ledger()
    ledger.reserve(call.reserve(transient=(True, False)))

    (ending,) = tell_ledger(ledger, call.expire())

    assert ending.charged == (0, 100)
    assert ledger.balances(call.keys, now_ms()) == (Balance(0, 0), Balance(100, 0))


def test_a_lease_moves_on_and_never_back() -> None:
    ledger, call = brought_to("held")

    ledger.renew(call.renew(lease_ms=DAY_MS))
    ledger.renew(call.renew(lease_ms=-DAY_MS))

    assert ledger.due(now_ms(), 10) == []


def test_the_highest_observed_cost_is_kept() -> None:
    ledger, call = brought_to("held")

    ledger.renew(call.renew(1500, 10))
    ledger.renew(call.renew(10, 150))
    ledger.renew(call.renew())

    (ending,) = tell_ledger(ledger, call.expire())
    assert ending.charged == (1500, 150)


def test_leases_that_ran_out_are_due_oldest_first() -> None:
    ledger = Ledger()
    calls = [Call(org="one") for _ in range(3)]
    for call, lease_ms in zip(calls, (-10, -30, -20), strict=True):
        ledger.reserve(call.reserve(lease_ms=lease_ms))

    assert ledger.due(now_ms(), 2) == [calls[1].id, calls[2].id]


def test_an_ended_reservation_is_remembered_for_the_horizon_and_no_longer() -> None:
    ledger, call = brought_to("held")
    at_ms = now_ms()
    ledger.settle(call.settle(at_ms=at_ms, horizon_ms=DAY_MS))

    def settled_again(at_ms: int) -> Outcome:
        return ledger.settle(call.settle(at_ms=at_ms, age_ms=2 * DAY_MS)).outcome

    assert settled_again(at_ms + DAY_MS - 1) is Outcome.DUPLICATE
    assert settled_again(at_ms + DAY_MS) is Outcome.DEAD_LETTER


def test_an_open_reservation_is_never_forgotten() -> None:
    ledger, call = brought_to("held")

    ledger.forget(now_ms() + 1000 * DAY_MS)

    assert ledger.due(now_ms(), 1) == [call.id]


def test_a_counter_is_forgotten_at_the_latest_time_that_was_asked_for() -> None:
    ledger, call = Ledger(), Call()
    at_ms = now_ms()
    ledger.reserve(call.reserve(at_ms=at_ms, forget_in_ms=3 * DAY_MS))
    ledger.reserve(call.sibling().reserve(at_ms=at_ms, forget_in_ms=2 * DAY_MS))

    ledger.forget(at_ms + 3 * DAY_MS - 1)
    assert ledger.balances(call.keys, now_ms())[0].held == 2000
    ledger.forget(at_ms + 3 * DAY_MS)
    assert ledger.balances(call.keys, now_ms())[0].held == 0


@pytest.mark.parametrize("name", ["settle for nothing", "release", "expire"])
def test_a_lost_counter_never_goes_below_zero(name: str) -> None:
    ledger, call = brought_to("held")
    ledger.counters.clear()

    tell_ledger(ledger, event(call, name))

    assert all(b.held == 0 and b.spent >= 0 for b in ledger.balances(call.keys, now_ms()))


def test_a_correction_of_a_lost_charge_never_goes_below_zero() -> None:
    ledger, call = brought_to("expired")
    ledger.counters.clear()

    tell_ledger(ledger, event(call, "settle"))

    assert ledger.balances(call.keys, now_ms()) == (Balance(), Balance())


@pytest.mark.parametrize("wrong", [-1, AMOUNT_MAX + 1])
def test_amounts_outside_the_exact_range_are_no_commands(wrong: int) -> None:
    with pytest.raises(ValueError, match="is not within"):
        Reserve("id", "org", 0, 0, (Hold("key", wrong, 0, 9999),))
    with pytest.raises(ValueError, match="is not within"):
        Reserve("id", "org", 0, 0, (Hold("key", 0, wrong, 9999),))
    with pytest.raises(ValueError, match="is not within"):
        Charge("key", wrong, 1)
    with pytest.raises(ValueError, match="is not within"):
        Renew("id", "org", 0, 0, (wrong,))


def test_a_command_that_names_a_counter_twice_is_none() -> None:
    hold, charge = Hold("key", 1, 1, 9999), Charge("key", 1, 9999)

    with pytest.raises(ValueError, match="named twice"):
        Reserve("id", "org", 0, 0, (hold, hold))
    with pytest.raises(ValueError, match="named twice"):
        Settle("id", "org", 0, 0, 0, (charge, charge))


def test_a_reservation_that_holds_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="limits nothing"):
        Reserve("id", "org", 0, 0, ())


def test_a_counter_that_would_be_forgotten_at_once_cannot_be_held_on() -> None:
    with pytest.raises(ValueError, match="forgotten"):
        Reserve("id", "org", 0, 0, (Hold("key", 1, 1, CLOCK_SKEW_MS_MAX),))


def test_releasing_an_unseen_id_with_any_counters_is_final() -> None:
    ledger, call = Ledger(), Call()
    ledger.release(Release(call.id, call.org, now_ms(), DAY_MS, ()))

    assert probed_state(ledger.reserve(call.reserve())) is State.RELEASED


def test_sums_at_the_end_of_the_range_are_exact() -> None:
    balance = Balance(spent=AMOUNT_MAX - 2, held=1)

    assert fits(Hold("key", 1, AMOUNT_MAX, 1), balance)
    assert not fits(Hold("key", 2, AMOUNT_MAX, 1), balance)
