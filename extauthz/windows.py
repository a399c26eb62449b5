"""When a budget's window starts and ends: calendar windows in its own IANA zone, rolling ones.

A window is named by the UTC instant of its start, never by a local label: on the day the clocks go
back, the local hour 02:00 happens twice and is two windows.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

_HOUR_MS = 3_600_000
_MINUTE_MS = 60_000


class Period(StrEnum):
    """The length of a window."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"
    ROLLING = "rolling"
    """the stretch of a fixed length that ends now"""


ROLLING_LENGTHS_MS = {
    "1h": _HOUR_MS,
    "24h": 24 * _HOUR_MS,
    "7d": 7 * 24 * _HOUR_MS,
    "30d": 30 * 24 * _HOUR_MS,
}
"""The lengths that a rolling window can have, as they are written."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Start (inclusive) and end (exclusive) in epoch milliseconds; both None for `total`."""

    start_ms: int | None
    end_ms: int | None

    def contains(self, at_ms: int) -> bool:
        """Whether an instant lies in the window."""
        if self.start_ms is None or self.end_ms is None:
            return True
        return self.start_ms <= at_ms < self.end_ms


@dataclass(frozen=True, slots=True)
class Window:
    """A repeating stretch of time; weeks start on Monday (ISO 8601)."""

    period: Period
    timezone: str = "UTC"
    length: str | None = None
    """of a rolling window: one of `ROLLING_LENGTHS_MS`"""

    def __post_init__(self) -> None:
        if (self.length in ROLLING_LENGTHS_MS) != (self.period is Period.ROLLING):
            raise ValueError(f"a window '{self.period.value}' of the length {self.length}")

    @property
    def name(self) -> str:
        """In a budget's id and in labels: `day`, `rolling-24h`."""
        return self.period.value if self.length is None else f"{self.period.value}-{self.length}"

    @property
    def length_ms(self) -> int | None:
        """How long a rolling window is; None for a calendar window."""
        return None if self.length is None else ROLLING_LENGTHS_MS[self.length]

    def bounds(self, at_ms: int) -> Bounds:
        """The window that an instant lies in.

        For a rolling one: from this instant to when all that is in the window now has left it.
        """
        if self.length_ms is not None:
            return Bounds(at_ms, at_ms + self.length_ms)
        if self.period is Period.TOTAL:
            return Bounds(None, None)
        if self.period is Period.MINUTE:
            start_ms = at_ms - at_ms % _MINUTE_MS
            return Bounds(start_ms, start_ms + _MINUTE_MS)
        zone = ZoneInfo(self.timezone)
        local = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone)
        if self.period is Period.HOUR:
            into_hour_ms = (local.minute * 60 + local.second) * 1000 + at_ms % 1000
            start_ms = at_ms - into_hour_ms
            return _within_one_offset(start_ms, at_ms, start_ms + _HOUR_MS, zone)
        first, after = _days(self.period, local.date())
        if _midnight_ms(after, zone) <= at_ms:
            # The clocks went back over midnight (St. John's, to 2011): the new day had begun.
            first, after = _days(self.period, after)
        return Bounds(_midnight_ms(first, zone), _midnight_ms(after, zone))


def _within_one_offset(start_ms: int, at_ms: int, end_ms: int, zone: ZoneInfo) -> Bounds:
    """The hour around an instant, ended where the clocks change in its middle.

    Where they change by half an hour (Lord Howe Island), the hours on both sides would overlap.
    """
    offset = _offset(at_ms, zone)
    if _offset(start_ms, zone) == offset == _offset(end_ms - _MINUTE_MS, zone):
        return Bounds(start_ms, end_ms)
    minutes = range(start_ms, end_ms, _MINUTE_MS)
    same = [minute for minute in minutes if _offset(minute, zone) == offset]
    return Bounds(same[0], same[-1] + _MINUTE_MS)


def _offset(at_ms: int, zone: ZoneInfo) -> timedelta | None:
    return datetime.fromtimestamp(at_ms / 1000, zone).utcoffset()


def _days(period: Period, day: date) -> tuple[date, date]:
    """The first day of the period that a day lies in, and the first day after it."""
    if period is Period.DAY:
        return day, day + timedelta(days=1)
    if period is Period.WEEK:
        monday = day - timedelta(days=day.weekday())
        return monday, monday + timedelta(days=7)
    first = day.replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1)


def _midnight_ms(day: date, zone: ZoneInfo) -> int:
    """The first instant of a local day. Where the clocks skip midnight, the instant they do."""
    return int(datetime.combine(day, time(), zone).timestamp()) * 1000
