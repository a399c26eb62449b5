"""Instants as operators write them: all that are taken can be shown again, in any time zone."""

from zoneinfo import ZoneInfo

import pytest

from extauthz.commands.desk import CommandError, until_of
from extauthz.commands.times import instant_of, local, utc

NOW_MS = 1_790_000_000_000
ZONES = ("UTC", "Asia/Tokyo", "America/Los_Angeles", "Pacific/Kiritimati", "Etc/GMT+12")


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    "text", ["999999w", "24h", "1970-01-02", "9997-12-31", "9997-12-31T23:59:59-12:00"]
)
def test_what_is_taken_can_be_shown(text: str, zone: str) -> None:
    for option in ("--since", "--until"):
        at_ms = instant_of(option, text, ZoneInfo(zone), NOW_MS)
        assert utc(at_ms)
        assert local(at_ms, ZoneInfo(zone))


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("text", ["0001-01-01", "9999-12-31", "9999-12-31T23:59:59-12:00", "soon"])
def test_what_has_no_date_somewhere_is_refused(text: str, zone: str) -> None:
    with pytest.raises(CommandError, match="write how long ago"):
        instant_of("--until", text, ZoneInfo(zone), NOW_MS)


def test_an_end_that_has_no_date_everywhere_is_refused() -> None:
    with pytest.raises(CommandError, match="leave it out"):
        until_of("9999-12-31T23:59:59-01:00", NOW_MS)
    assert until_of("9997-12-31T23:59:59-01:00", NOW_MS)
