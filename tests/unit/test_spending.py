"""What was spent is the sum of the rows, whole, and every call is counted once."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_rows import DAY_MS, NOON_MS, entry, row, settled

from extauthz.ledger import Row, RowOutcome
from extauthz.service.spending import DIMENSIONS, Spending, Spent, total_of

MIDNIGHT_MS = NOON_MS + DAY_MS // 2


def by(dimension: str, *rows: Row, timezone: str = "UTC") -> dict[str, Spent]:
    spending = Spending.by(dimension, timezone)
    for one in rows:
        spending.add(entry(one))
    return spending.result()


@pytest.mark.parametrize("dimension", DIMENSIONS[:-1])
def test_rows_are_summed_by_each_dimension(dimension):
    rows = [
        settled(seq, cost, **{dimension: name})
        for seq, (name, cost) in enumerate([("a", 1), ("b", 20), ("a", 300)], start=1)
    ]
    assert by(dimension, *rows) == {"a": Spent(2, 20, 6, 301), "b": Spent(1, 10, 3, 20)}


def test_a_late_row_corrects_its_call_and_is_no_new_one():
    expired = row(1, RowOutcome.EXPIRED_UNCONFIRMED, 500, id="x")
    late = row(2, RowOutcome.LATE, 30, 500, id="x", usage={"input_tokens": 7, "output_tokens": 2})
    assert by("agent", expired) == {"bot": Spent(1, 0, 0, 500, 1, 500)}
    assert by("agent", expired, late) == {"bot": Spent(1, 7, 2, 30)}


def test_what_is_free_contradicts_or_came_too_late_costs_nothing_and_is_no_call():
    nothing = (
        row(1, RowOutcome.RELEASED),
        row(2, RowOutcome.ABANDONED),
        row(3, RowOutcome.CONFLICT, 5, 5, claimed=9),
        row(4, RowOutcome.DEAD_LETTER, claimed=9),
        Row(5, 1, RowOutcome.OVERRIDE, "o"),
        Row(6, 1, RowOutcome.OPENED, "books"),
    )
    assert by("agent", *nothing) == {}
    anomaly = row(7, RowOutcome.ANOMALY, 40, usage={"input_tokens": 1, "output_tokens": 1})
    recovered = row(8, RowOutcome.RECOVERED, 2)
    assert by("agent", *nothing, anomaly, recovered) == {"bot": Spent(2, 1, 1, 42)}


@pytest.mark.parametrize(
    ("timezone", "days"),
    [
        ("UTC", {"2026-09-23": 1, "2026-09-24": 20}),
        ("Europe/Berlin", {"2026-09-24": 21}),
        ("America/New_York", {"2026-09-23": 21}),
    ],
)
def test_days_are_those_of_the_time_zone(timezone, days):
    rows = [
        settled(1, 1, reserved_at_ms=str(MIDNIGHT_MS - 1)),
        settled(2, 20, reserved_at_ms=str(MIDNIGHT_MS)),
    ]
    found = by("day", *rows, timezone=timezone)
    assert {day: spent.nanousd for day, spent in found.items()} == days


def test_a_call_and_its_correction_belong_to_the_day_on_which_it_was_reserved():
    words = {"id": "x", "reserved_at_ms": str(NOON_MS)}
    expired = row(1, RowOutcome.EXPIRED_UNCONFIRMED, 500, at_ms=NOON_MS + DAY_MS, **words)
    late = row(2, RowOutcome.LATE, 30, 500, at_ms=NOON_MS + 2 * DAY_MS, **words)
    assert by("day", expired, late) == {"2026-09-23": Spent(1, 0, 0, 30)}


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 2**52), st.none() | st.integers(0, 2**52)),
        max_size=30,
    )
)
def test_groups_add_up_to_the_rows_whatever_they_are(calls):
    rows: list[Row] = []
    truth: Counter[str] = Counter()
    for number, (agent, cost, corrected) in enumerate(calls):
        words = {"id": f"x{number}", "agent": agent}
        outcome = RowOutcome.SETTLED if corrected is None else RowOutcome.EXPIRED_UNCONFIRMED
        rows.append(row(1, outcome, cost, **words))
        if corrected is not None:
            rows.append(row(1, RowOutcome.LATE, corrected, cost, **words))
        truth[agent] += cost if corrected is None else corrected
    groups = by("agent", *rows)
    assert {name: spent.nanousd for name, spent in groups.items()} == dict(truth)
    total = total_of(groups)
    assert total.nanousd == truth.total() == sum(one.change_nanousd for one in rows)
    assert (total.calls, total.unconfirmed_calls) == (len(calls), 0)
