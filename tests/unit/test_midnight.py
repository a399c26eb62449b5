"""A call belongs to the windows in which it was reserved, whatever midnight comes before its end.

Through the service itself: Checks, access-log entries and leases, on a clock that is moved.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from service_rules import DOLLAR, Desk, agent, budget, call

from extauthz.ledger import Balance, Ending, Outcome
from extauthz.policies import Budget
from extauthz.providers.base import CapturedResponse
from extauthz.reasons import Reason
from extauthz.service.background import ExpiryLoop
from extauthz.service.call_record import CallRecord
from extauthz.service.completed_call import CompletedCall
from extauthz.service.settle import Settlement, Settler
from extauthz.store.base import counter_key
from extauthz.windows import Period, Window

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
NOTHING = Balance(0, 0)

NIGHTS = [
    pytest.param("Europe/Berlin", "2026-06-10", "2026-06-11", id="Berlin"),
    pytest.param("America/New_York", "2026-06-10", "2026-06-11", id="New York"),
    pytest.param("Asia/Kathmandu", "2026-06-10", "2026-06-11", id="Kathmandu, 5:45 ahead"),
    pytest.param("Europe/Berlin", "2026-03-28", "2026-03-29", id="Berlin, into the short day"),
    pytest.param("Europe/Berlin", "2026-03-29", "2026-03-30", id="Berlin, out of the short day"),
    pytest.param("Europe/Berlin", "2026-10-24", "2026-10-25", id="Berlin, into the long day"),
    pytest.param("Europe/Berlin", "2026-10-25", "2026-10-26", id="Berlin, out of the long day"),
    pytest.param("America/New_York", "2026-03-07", "2026-03-08", id="New York, into the short day"),
    pytest.param(
        "America/New_York", "2026-11-01", "2026-11-02", id="New York, out of the long day"
    ),
    pytest.param("Europe/Berlin", "2028-02-28", "2028-02-29", id="into the leap day"),
    pytest.param("Asia/Kathmandu", "2028-02-29", "2028-03-01", id="out of the leap day"),
    pytest.param("America/New_York", "2027-02-28", "2027-03-01", id="a February without one"),
    pytest.param("Europe/Berlin", "2026-12-31", "2027-01-01", id="into the new year"),
]


def ms(text: str, zone: str, fold: int = 0) -> int:
    local = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return round(local.timestamp() * 1000)


@dataclass
class Night:
    """One agent's service, in a zone, at any local time."""

    zone: str
    budgets: tuple[Budget, ...]
    max_in_flight: int | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.desk = Desk.of(agent(*self.budgets, max_in_flight=self.max_in_flight))
        made = self.desk.authorizer.reserving
        self.settler = Settler(made.rules, made.store, made.room, self.desk.clock, self)
        self.leases = ExpiryLoop(
            made.rules, made.store, made.room, self.desk.clock, made.open_calls,
            expired=self.expired, backlog=lambda: 0,
        )  # fmt: skip

    @classmethod
    def with_day_budget(cls, zone: str, dollars: int) -> "Night":
        return cls(zone, (budget(dollars, window=Window(Period.DAY, zone)),))

    def settled(self, settlement: Settlement) -> None:
        self.outcomes.append(settlement.outcome)

    def expired(self, ending: Ending) -> None:
        self.outcomes.append(ending.outcome)

    def at(self, text: str, fold: int = 0) -> int:
        """It is this time here now."""
        self.desk.clock.now = ms(text, self.zone, fold)
        return self.desk.clock.now

    async def asks(self, dollars: int) -> CallRecord | Reason:
        """What a call that can cost so much is granted, or why it is not."""
        verdict = await self.desk.authorizer.authorize(call(dollars))
        return verdict.record or verdict.reason

    async def reserves(self, dollars: int) -> CallRecord:
        record = await self.asks(dollars)
        assert isinstance(record, CallRecord)
        return record

    async def ends(self, record: CallRecord, dollars: int) -> None:
        await self._enters(record, dollars, periodic=False)

    async def goes_on(self, record: CallRecord, dollars: int) -> None:
        """A periodic entry of a stream that has used so much up to now."""
        await self._enters(record, dollars, periodic=True)

    async def _enters(self, record: CallRecord, dollars: int, *, periodic: bool) -> None:
        usage = {"prompt_tokens": 5, "completion_tokens": dollars}
        entry = CompletedCall(
            record,
            CapturedResponse(usage=json.dumps(usage), model='"small"', complete=not periodic),
            200, via_upstream=True, left=True, refused=False, periodic=periodic,
            ended_at_ms=self.desk.clock(),
        )  # fmt: skip
        assert await self.settler.settle([entry]) == []

    async def stands(self, start: str, of: Budget | None = None, fold: int = 0) -> Balance:
        """The balance, in dollars, of the window that began at a local time."""
        which = of or self.budgets[0]
        key = counter_key("default", which.id, ms(start, self.zone, fold))
        (found,) = await self.desk.memory.balances("default", [key], self.desk.clock())
        assert found.spent % DOLLAR == 0
        assert found.held % DOLLAR == 0
        return Balance(found.spent // DOLLAR, found.held // DOLLAR)


@pytest.mark.parametrize(("zone", "day", "next_day"), NIGHTS)
async def test_what_settles_after_midnight_is_spent_on_the_day_it_was_reserved(zone, day, next_day):
    night = Night.with_day_budget(zone, 10)
    night.at(f"{day}T23:59:59.999")
    record = await night.reserves(8)
    assert await night.stands(day) == Balance(0, 8)
    night.at(next_day)
    assert await night.stands(next_day) == NOTHING, "no job has run, and nothing is spent"
    await night.ends(record, 6)
    assert await night.stands(day) == Balance(6, 0)
    assert await night.stands(next_day) == NOTHING


@pytest.mark.parametrize(("zone", "day", "next_day"), NIGHTS)
async def test_yesterdays_holds_take_no_room_today(zone, day, next_day):
    night = Night.with_day_budget(zone, 10)
    night.at(f"{day}T23:59:59.999")
    await night.reserves(10)
    assert await night.asks(1) is Reason.BUDGET_HELD
    night.at(next_day)
    await night.reserves(10)
    assert await night.stands(day) == await night.stands(next_day) == Balance(0, 10)
    assert await night.asks(1) is Reason.BUDGET_HELD


async def test_over_midnight_both_days_can_be_under_way_and_max_in_flight_bounds_that():
    daily = budget(10, window=Window(Period.DAY, "Europe/Berlin"))
    free, bounded = (Night("Europe/Berlin", (daily,), max_in_flight=most) for most in (None, 3))
    for night, today in ((free, 2), (bounded, 1)):
        night.at("2026-06-10T23:59:59.999")
        records = [await night.reserves(5) for _ in range(2)]
        night.at("2026-06-11")
        for _ in range(today):
            await night.reserves(5)
        full = Reason.TOO_MANY_IN_FLIGHT if night is bounded else Reason.BUDGET_HELD
        assert await night.asks(5) is full
        assert await night.stands("2026-06-11") == Balance(0, 5 * today)
        await night.ends(records[0], 5)
        assert (await night.asks(5) is full) == (night is free)


@pytest.mark.parametrize(("zone", "day", "next_day"), NIGHTS)
async def test_a_lease_that_runs_out_after_midnight_charges_the_day_it_was_reserved(
    zone, day, next_day
):
    night = Night.with_day_budget(zone, 10)
    night.at(f"{day}T23:59")
    record = await night.reserves(8)
    night.at(f"{next_day}T00:13:59.999")
    await night.leases.look()
    assert await night.stands(day) == Balance(0, 8)
    night.at(f"{next_day}T00:14")
    await night.leases.look()
    assert await night.stands(day) == Balance(8, 0)
    await night.ends(record, 3)
    assert await night.stands(day) == Balance(3, 0)
    assert await night.stands(next_day) == NOTHING
    assert night.outcomes == [Outcome.EXPIRED, Outcome.LATE]


@pytest.mark.parametrize(
    ("zone", "day", "next_day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", "2026-03-30", 23),
        ("Europe/Berlin", "2026-10-25", "2026-10-26", 25),
        ("America/New_York", "2026-03-08", "2026-03-09", 23),
        ("America/New_York", "2026-11-01", "2026-11-02", 25),
        ("America/New_York", "2026-03-29", "2026-03-30", 24),
        ("Asia/Kathmandu", "2026-03-29", "2026-03-30", 24),
        ("Asia/Kathmandu", "2028-02-29", "2028-03-01", 24),
    ],
)
async def test_a_day_that_is_spent_stays_so_for_all_its_hours_and_no_longer(
    zone, day, next_day, hours
):
    night = Night.with_day_budget(zone, 10)
    began = night.at(day)
    await night.ends(await night.reserves(10), 10)
    for minute in range(0, hours * 60, 15):
        night.desk.clock.now = began + minute * MINUTE_MS
        assert await night.asks(1) is Reason.BUDGET_EXHAUSTED, f"{minute} minutes into the day"
    night.desk.clock.now = began + hours * HOUR_MS - 1
    assert await night.asks(1) is Reason.BUDGET_EXHAUSTED
    assert night.at(next_day) == began + hours * HOUR_MS
    await night.reserves(10)


@pytest.mark.parametrize(
    ("zone", "day"), [("Europe/Berlin", "2026-10-25T02"), ("America/New_York", "2026-11-01T01")]
)
async def test_the_hour_that_comes_twice_is_two_windows_of_one_day(zone, day):
    hourly = budget(10, window=Window(Period.HOUR, zone))
    daily = budget(15, window=Window(Period.DAY, zone))
    night = Night(zone, (hourly, daily))
    first = night.at(f"{day}:30")
    record = await night.reserves(10)
    assert night.at(f"{day}:30", fold=1) == first + HOUR_MS
    await night.reserves(5)
    await night.ends(record, 9)
    assert await night.stands(f"{day}:00", hourly) == Balance(9, 0)
    assert await night.stands(f"{day}:00", hourly, fold=1) == Balance(0, 5)
    assert await night.stands(day[:10], daily) == Balance(9, 5)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kathmandu"])
async def test_all_windows_of_a_call_are_those_of_its_beginning(zone):
    periods = (Period.MINUTE, Period.HOUR, Period.DAY, Period.WEEK, Period.MONTH)
    night = Night(zone, tuple(budget(10, window=Window(period, zone)) for period in periods))
    before = ("2026-05-31T23:59", "2026-05-31T23:00", "2026-05-31", "2026-05-25", "2026-05-01")
    night.at("2026-05-31T23:59:59.999")  # a Sunday
    record = await night.reserves(10)
    night.at("2026-06-01")
    await night.reserves(10)
    await night.ends(record, 7)
    for of, start in zip(night.budgets, before, strict=True):
        assert await night.stands(start, of) == Balance(7, 0), of.id
        assert await night.stands("2026-06-01", of) == Balance(0, 10), of.id


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kathmandu"])
async def test_each_window_of_a_call_ends_at_its_own_time(zone):
    periods = (Period.MINUTE, Period.HOUR, Period.DAY, Period.WEEK, Period.MONTH)
    night = Night(zone, tuple(budget(10, window=Window(period, zone)) for period in periods))
    minute, hour, day, week, month = night.budgets
    night.at("2026-12-30T23:59:59.999")  # a Wednesday
    record = await night.reserves(6)
    night.at("2026-12-31")
    assert await night.asks(5) is Reason.BUDGET_HELD, "the week and the month go on"
    await night.ends(record, 6)
    assert await night.asks(5) is Reason.BUDGET_EXHAUSTED
    await night.reserves(4)
    assert [await night.stands("2026-12-31", of) for of in (minute, hour, day)] == [
        Balance(0, 4)
    ] * 3
    assert await night.stands("2026-12-28", week) == Balance(6, 4)
    assert await night.stands("2026-12-01", month) == Balance(6, 4)
    night.at("2027-01-01")
    assert await night.asks(1) is Reason.BUDGET_HELD, "the week goes on into the new year"
    night.at("2027-01-04")
    await night.reserves(10)
    assert await night.stands("2027-01-04", week) == Balance(0, 10)
    assert await night.stands("2027-01-01", month) == Balance(0, 10)


@pytest.mark.parametrize(("zone", "day", "next_day"), NIGHTS)
async def test_a_stream_of_thirty_minutes_over_midnight_settles_into_the_day_it_began(
    zone, day, next_day
):
    night = Night.with_day_budget(zone, 40)
    began = night.at(f"{day}T23:45")
    record = await night.reserves(31)
    for minute in range(1, 31):
        night.desk.clock.now = began + minute * MINUTE_MS
        await night.goes_on(record, minute)
        await night.leases.look()
        assert await night.stands(day) == Balance(0, 31)
        assert await night.stands(next_day) == NOTHING
    assert night.desk.clock() == ms(f"{next_day}T00:15", zone)
    await night.reserves(40)
    await night.ends(record, 30)
    assert await night.stands(day) == Balance(30, 0)
    assert await night.stands(next_day) == Balance(0, 40)
    assert night.outcomes == [Outcome.SETTLED]


async def test_a_stream_that_falls_silent_after_midnight_is_charged_to_the_day_it_began():
    night = Night.with_day_budget("Europe/Berlin", 40)
    began = night.at("2026-10-24T23:45")
    record = await night.reserves(5)
    for minute in range(1, 21):
        night.desk.clock.now = began + minute * MINUTE_MS
        await night.goes_on(record, minute)
    night.desk.clock.now += 15 * MINUTE_MS
    await night.leases.look()
    assert await night.stands("2026-10-24") == Balance(20, 0), "what it was seen to use"
    assert await night.stands("2026-10-25") == NOTHING
    assert night.outcomes == [Outcome.EXPIRED]


async def test_one_midnight_is_not_everybodys():
    zones = ("Asia/Kathmandu", "Europe/Berlin", "America/New_York")
    night = Night(
        "UTC",
        tuple(
            budget(10, window=Window(Period.DAY, zone), explicit_id=f"day in {zone}")
            for zone in zones
        ),
    )
    night.at("2026-06-10T12:00")
    await night.ends(await night.reserves(10), 10)
    for before, midnight in zip(
        ("2026-06-10T18:14:59.999", "2026-06-10T21:59:59.999", "2026-06-11T03:59:59.999"),
        ("2026-06-10T18:15", "2026-06-10T22:00", "2026-06-11T04:00"),
        strict=True,
    ):
        night.at(before)
        assert await night.asks(1) is Reason.BUDGET_EXHAUSTED
        night.at(midnight)
    await night.reserves(10)
    for of, start in zip(
        night.budgets, ("2026-06-10T18:15", "2026-06-10T22:00", "2026-06-11T04:00"), strict=True
    ):
        assert await night.stands(start, of) == Balance(0, 10), of.id
