"""Windows tile the time line in every zone, on the days when the clocks change too."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extauthz.windows import Bounds, Period, Window

HOUR_MS = 3_600_000
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",  # to 2019 its clocks changed at midnight
    "America/Havana",  # falls back from 1:00 to 0:00
    "America/St_Johns",  # to 2011 its clocks changed at 0:01
    "Australia/Lord_Howe",  # changes by half an hour
    "Asia/Kathmandu",  # 5:45 ahead
    "Asia/Beirut",
    "Pacific/Apia",  # had no 30 December 2011
    "Africa/Casablanca",
)
CALENDAR = (Period.HOUR, Period.DAY, Period.WEEK, Period.MONTH)


def ms(text: str, zone: str = "UTC", fold: int = 0) -> int:
    local = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(local.timestamp()) * 1000


def hours(bounds: Bounds) -> float:
    assert bounds.start_ms is not None
    assert bounds.end_ms is not None
    return (bounds.end_ms - bounds.start_ms) / HOUR_MS


instants = st.integers(ms("1980-01-01"), ms("2045-01-01"))


@given(instants, st.sampled_from(ZONES), st.sampled_from(CALENDAR))
@example(ms("2010-11-07T02:31"), "America/St_Johns", Period.DAY)
@example(ms("2010-11-07T03:00"), "America/St_Johns", Period.DAY)
@example(ms("2010-11-07T02:31"), "America/St_Johns", Period.HOUR)
@example(ms("2026-04-04T15:15"), "Australia/Lord_Howe", Period.HOUR)
@example(ms("2026-10-03T15:45"), "Australia/Lord_Howe", Period.HOUR)
@example(ms("2011-12-30T09:59:59"), "Pacific/Apia", Period.DAY)
@example(ms("2018-11-04T03:00"), "America/Sao_Paulo", Period.DAY)
def test_every_instant_lies_in_one_window_and_the_next_begins_where_it_ends(at_ms, zone, period):
    window = Window(period, zone)
    bounds = window.bounds(at_ms)
    assert bounds.start_ms is not None
    assert bounds.end_ms is not None

    assert bounds.contains(at_ms)
    assert window.bounds(bounds.start_ms) == bounds
    assert window.bounds(bounds.end_ms - 1) == bounds
    after, before = window.bounds(bounds.end_ms), window.bounds(bounds.start_ms - 1)
    assert after.start_ms == bounds.end_ms
    assert before.end_ms == bounds.start_ms


@given(instants, st.sampled_from(ZONES))
def test_a_calendar_window_begins_at_a_local_midnight_or_where_the_clocks_skip_it(at_ms, zone):
    bounds = Window(Period.DAY, zone).bounds(at_ms)
    assert bounds.start_ms is not None

    start = datetime.fromtimestamp(bounds.start_ms / 1000, ZoneInfo(zone))
    before = datetime.fromtimestamp(bounds.start_ms / 1000 - 1, ZoneInfo(zone))

    assert (start.hour, start.minute) == (0, 0) or start.utcoffset() != before.utcoffset()


@given(instants, st.sampled_from(ZONES))
def test_a_minute_is_the_same_in_every_zone(at_ms, zone):
    bounds = Window(Period.MINUTE, zone).bounds(at_ms)
    assert bounds == Bounds(at_ms - at_ms % 60_000, at_ms - at_ms % 60_000 + 60_000)


@pytest.mark.parametrize(
    ("zone", "noon", "length"),
    [
        ("Europe/Berlin", "2026-03-29T12:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00", 25),
        ("America/New_York", "2026-03-08T12:00", 23),
        ("America/New_York", "2026-11-01T12:00", 25),
        ("Australia/Lord_Howe", "2026-04-05T12:00", 24.5),
        ("Australia/Lord_Howe", "2026-10-04T12:00", 23.5),
        ("America/Sao_Paulo", "2018-11-04T12:00", 23),
        ("America/Sao_Paulo", "2019-02-16T12:00", 25),
        ("Asia/Kathmandu", "2026-03-29T12:00", 24),
    ],
)
def test_a_day_on_which_the_clocks_change_is_as_long_as_it_is(zone, noon, length):
    assert hours(Window(Period.DAY, zone).bounds(ms(noon, zone))) == length


def test_the_hour_that_repeats_is_two_windows():
    window = Window(Period.HOUR, "Europe/Berlin")
    first, second = (
        window.bounds(ms("2026-10-25T02:30", "Europe/Berlin", fold)) for fold in (0, 1)
    )
    assert first.start_ms == ms("2026-10-25T00:00")
    assert second.start_ms == first.end_ms
    assert hours(first) == hours(second) == 1


def test_a_day_begins_at_the_zones_midnight():
    bounds = Window(Period.DAY, "Asia/Kathmandu").bounds(ms("2026-06-01T18:20"))
    assert bounds == Bounds(ms("2026-06-01T18:15"), ms("2026-06-02T18:15"))


@pytest.mark.parametrize(
    ("period", "at", "start", "end"),
    [
        (Period.MONTH, "2028-02-29T23:59", "2028-02-01", "2028-03-01"),
        (Period.MONTH, "2026-12-31T23:59", "2026-12-01", "2027-01-01"),
        (Period.DAY, "2028-02-29T00:00", "2028-02-29", "2028-03-01"),
        (Period.WEEK, "2027-01-01T12:00", "2026-12-28", "2027-01-04"),
        (Period.WEEK, "2026-11-23T00:00", "2026-11-23", "2026-11-30"),
        (Period.WEEK, "2026-11-22T23:59", "2026-11-16", "2026-11-23"),
    ],
)
def test_leap_days_year_ends_and_weeks_that_start_on_monday(period, at, start, end):
    assert Window(period).bounds(ms(at)) == Bounds(ms(start), ms(end))


def test_a_total_never_ends_and_holds_every_instant():
    bounds = Window(Period.TOTAL).bounds(ms("2026-01-01"))
    assert bounds == Bounds(None, None)
    assert bounds.contains(0)
    assert bounds.contains(int(datetime(9000, 1, 1, tzinfo=UTC).timestamp()) * 1000)


@pytest.mark.parametrize(
    ("length", "hours_long"), [("1h", 1), ("24h", 24), ("7d", 168), ("30d", 720)]
)
def test_a_rolling_window_has_let_go_of_everything_after_its_length(length, hours_long):
    window = Window(Period.ROLLING, length=length)
    at_ms = ms("2026-03-29T00:30")  # the clocks change nowhere: a length is a length
    assert window.bounds(at_ms).start_ms == at_ms
    assert hours(window.bounds(at_ms)) == hours_long
    assert window.name == f"rolling-{length}"


@pytest.mark.parametrize(
    ("period", "length"), [(Period.ROLLING, None), (Period.ROLLING, "12h"), (Period.DAY, "24h")]
)
def test_only_rolling_windows_have_a_length_and_only_four(period, length):
    with pytest.raises(ValueError, match="of the length"):
        Window(period, length=length)
