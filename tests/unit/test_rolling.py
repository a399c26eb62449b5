"""Rolling windows: whatever is billed when, no stretch of a window's length exceeds the limit."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
    Balance,
    Charge,
    Hold,
    Ledger,
    Release,
    Reserve,
    Reserved,
    Settle,
    bucket_width_ms,
    width_of,
)
from extauthz.ledger.rolling import BUCKETS, oldest_bucket
from extauthz.store.base import counter_key, rolling_counter_key
from extauthz.windows import ROLLING_LENGTHS_MS, Period, Window

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
WIDTH_MS = bucket_width_ms(HOUR_MS)
KEY = rolling_counter_key("default", "agent/bot/rolling-1h/usd", HOUR_MS)
LIMIT = 10
START = 1_790_000_000_000


def reserve(ledger: Ledger, id_: str, amount: int, at_ms: int, lease_ms: int = DAY_MS) -> bool:
    hold = Hold(KEY, amount, LIMIT, at_ms + 30 * DAY_MS)
    answer = ledger.reserve(Reserve(id_, "default", at_ms, at_ms + lease_ms, (hold,)))
    return isinstance(answer, Reserved)


def settle(ledger: Ledger, id_: str, cost: int, at_ms: int) -> None:
    charges = (Charge(KEY, cost, at_ms + 30 * DAY_MS),)
    ledger.settle(Settle(id_, "default", at_ms, at_ms, 30 * DAY_MS, charges))


def spent(ledger: Ledger, at_ms: int) -> int:
    return ledger.balances([KEY], at_ms)[0].spent


@pytest.mark.parametrize("length_ms", ROLLING_LENGTHS_MS.values())
def test_the_buckets_cover_the_window_even_for_two_clocks_that_are_off(length_ms: int) -> None:
    width = bucket_width_ms(length_ms)
    assert (BUCKETS - 1) * width >= length_ms + 2 * CLOCK_SKEW_MS_MAX
    assert (BUCKETS - 1) * width <= length_ms * 1.001
    assert oldest_bucket(START, width) == (START - (BUCKETS - 1) * width) // width


@pytest.mark.parametrize("length", ROLLING_LENGTHS_MS)
def test_the_width_is_read_from_the_key(length: str) -> None:
    window = Window(Period.ROLLING, length=length)
    assert window.length_ms is not None
    key = rolling_counter_key("default", "x", window.length_ms)
    assert width_of(key) == bucket_width_ms(window.length_ms)


@pytest.mark.parametrize("start_ms", [None, START])
def test_no_name_of_a_budget_makes_a_calendar_window_a_rolling_one(start_ms: int | None) -> None:
    assert width_of(counter_key("default", "agent/bot/day/usd/m:rolling-5", start_ms)) is None


events = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "settle less", "release", "expire"]),
        st.integers(0, 6),
        st.sampled_from([0, 1, 700, WIDTH_MS - 1, WIDTH_MS, HOUR_MS // 3, HOUR_MS - 1, HOUR_MS]),
    ),
    max_size=60,
)


@given(events, st.integers(0, WIDTH_MS))
@example([("reserve", 6, 0), ("reserve", 4, 0), ("settle", 0, 0), ("settle", 0, HOUR_MS),
          ("reserve", 6, 1), ("settle", 0, 0)], 0)  # fmt: skip
def test_what_is_billed_within_any_stretch_of_the_windows_length_never_exceeds_the_limit(
    events: list[tuple[str, int, int]], offset: int
) -> None:
    ledger, at_ms = Ledger(), START + offset
    held: dict[str, int] = {}
    billed: list[tuple[int, int]] = []
    for number, (what, amount, passes_ms) in enumerate(events):
        at_ms += passes_ms
        if what == "reserve":
            if reserve(ledger, str(number), amount, at_ms):
                held[str(number)] = amount
                within = sum(cost for at, cost in billed if at > at_ms - HOUR_MS)
                assert within + sum(held.values()) <= LIMIT
        elif held:
            id_ = next(iter(held))
            most = held.pop(id_)
            if what == "release":
                ledger.release(Release(id_, "default", at_ms, 30 * DAY_MS, (KEY,)))
            elif what == "expire":  # charged in full; the provider billed less, as the entry says
                known = ledger.reservations[id_]
                known.lease_until_ms = at_ms
                ledger.expire(id_, at_ms, 30 * DAY_MS)
                cost = min(amount, most)
                settle(ledger, id_, cost, at_ms + passes_ms)
                billed.append((at_ms, cost))
                at_ms += passes_ms
            else:
                cost = most if what == "settle" else min(amount, most)
                settle(ledger, id_, cost, at_ms)
                billed.append((at_ms, cost))
        for end_ms, _ in billed:
            assert sum(c for at, c in billed if end_ms - HOUR_MS < at <= end_ms) <= LIMIT


def test_what_was_spent_leaves_after_a_window_and_at_most_one_bucket_more() -> None:
    ledger = Ledger()
    reserve(ledger, "a", 7, START)
    settle(ledger, "a", 7, START)
    assert spent(ledger, START + HOUR_MS) == 7
    assert spent(ledger, START + BUCKETS * WIDTH_MS) == 0


def test_a_long_call_counts_from_when_it_was_billed_not_from_when_it_was_reserved() -> None:
    ledger = Ledger()
    reserve(ledger, "a", 7, START)
    assert ledger.balances([KEY], START + 2 * HOUR_MS) == (Balance(0, 7),)
    settle(ledger, "a", 7, START + 2 * HOUR_MS)
    assert spent(ledger, START + 3 * HOUR_MS) == 7


@pytest.mark.parametrize(
    ("late_ms", "cost", "now", "after_the_first_has_left"),
    [
        (HOUR_MS // 2, 2, 2, 0),  # corrected where it was charged
        (HOUR_MS // 2, 9, 9, 0),
        (2 * HOUR_MS, 2, 0, 0),  # that has left: nothing to give back
        (2 * HOUR_MS, 9, 2, 2),  # and what is missing counts from now
    ],
)
def test_a_late_settlement_corrects_what_its_expiry_charged(
    late_ms: int, cost: int, now: int, after_the_first_has_left: int
) -> None:
    ledger = Ledger()
    reserve(ledger, "a", 7, START, lease_ms=0)
    ledger.expire("a", START, 30 * DAY_MS)
    settle(ledger, "a", cost, START + late_ms)
    assert spent(ledger, START + late_ms) == now
    assert spent(ledger, START + max(late_ms, BUCKETS * WIDTH_MS)) == after_the_first_has_left


def test_a_counter_never_has_more_buckets_than_it_may() -> None:
    ledger = Ledger()
    for n in range(500):
        at_ms = START + n * WIDTH_MS // 2
        reserve(ledger, str(n), 0, at_ms)
        settle(ledger, str(n), 1, at_ms)
        assert len(ledger.counters[KEY].buckets) <= BUCKETS


def test_a_counter_is_remembered_as_long_as_what_was_spent_last_counts() -> None:
    ledger = Ledger()
    hold = Hold(KEY, 7, LIMIT, START + 2 * HOUR_MS)
    ledger.reserve(Reserve("a", "default", START, START + DAY_MS, (hold,)))
    at_ms = START + 2 * HOUR_MS - 1
    charge = Charge(KEY, 7, START + 2 * HOUR_MS)
    ledger.settle(Settle("a", "default", at_ms, START, DAY_MS, (charge,)))
    ledger.forget(at_ms + HOUR_MS)
    assert spent(ledger, at_ms + HOUR_MS) == 7
