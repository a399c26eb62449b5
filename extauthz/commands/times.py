"""Instants as people write them, and as they are shown to them: always with their time zone."""

import re
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from extauthz.commands.desk import INSTANT_MS_MAX, CommandError

_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def zone_of(name: str) -> ZoneInfo:
    """A time zone.

    Raises:
        CommandError: there is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise CommandError(
            f"--timezone {name}: there is no such time zone, write one such as Europe/Berlin"
        ) from None


def instant_of(option: str, text: str, zone: ZoneInfo, now_ms: int) -> int:
    """An instant in epoch milliseconds: `24h` ago, a date, or a time in ISO 8601.

    Dates and times without an offset are those of the zone. A date for `--until` is still wanted
    itself, so its instant is the start of the next day.

    Raises:
        CommandError: the text is none of these.
    """
    if ago := _AGO.fullmatch(text):
        return max(0, now_ms - int(ago[1]) * _UNIT_MS[ago[2]])
    try:
        if _DATE.fullmatch(text):
            days = 1 if option == "--until" else 0
            at = datetime.combine(date.fromisoformat(text) + timedelta(days), time(), zone)
        else:
            at = datetime.fromisoformat(text)
            at = at if at.tzinfo else at.replace(tzinfo=zone)
        at_ms = int(at.timestamp() * 1000)
    except (ValueError, OverflowError):
        at_ms = -1
    if not 0 <= at_ms <= INSTANT_MS_MAX:
        raise CommandError(
            f"{option} {text}: write how long ago (30m, 24h, 7d), a date (2026-11-23) or a time "
            "(2026-11-23T08:00+01:00)"
        )
    return at_ms


def local(at_ms: int, zone: ZoneInfo) -> str:
    """`2026-11-23T09:00:00+01:00`."""
    at = datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(zone)
    return at.isoformat(timespec="seconds")


def utc(at_ms: int) -> str:
    """`2026-11-23T08:00:00.123Z`, for machines."""
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"
