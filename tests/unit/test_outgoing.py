"""A window or time zone that changes takes effect at the next boundary, also over a restart."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from service_rules import DOLLAR, Clock, Desk, agent, budget, call, rules

from extauthz.ledger import Balance, Hold, Reserve
from extauthz.policies import Budget, Scope
from extauthz.reasons import Reason
from extauthz.server.in_force import InForceError, as_recorded, take_over
from extauthz.service.background import ExpiryLoop
from extauthz.store.base import counter_key
from extauthz.windows import Period, Window

UTC_DAY, BERLIN_DAY = Window(Period.DAY), Window(Period.DAY, "Europe/Berlin")
HOUR, MONTH, TOTAL = Window(Period.HOUR), Window(Period.MONTH), Window(Period.TOTAL)
ROLLING = Window(Period.ROLLING, length="24h")


def ms(text: str, zone: str = "UTC") -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


class Sidecar:
    """One agent's Checks on a store, a data_dir and a clock; restarted or reloaded at will."""

    def __init__(self, path: Path, *budgets: Budget, at: str = "2026-06-10T12:00") -> None:
        self.path, self.desk, self.calls = path, Desk.of(agent(*budgets)), 0
        self.desk.clock.now = ms(at)
        self.loads(*budgets)

    def loads(self, *budgets: Budget) -> None:
        """The file says so now: a reload or a restart, which know nothing but the record."""
        found = rules(agent(*budgets)).policies
        policies = take_over(self.path, found, self.desk.clock())
        assert as_recorded(self.path, found) == policies
        self.desk.authorizer.rules.policies = policies

    def at(self, text: str, zone: str = "UTC") -> None:
        self.desk.clock.now = ms(text, zone)

    async def asks(self, dollars: int) -> Reason:
        self.calls += 1
        asked = call(dollars, request_id=f"r-{self.calls}")
        return (await self.desk.authorizer.authorize(asked)).reason

    async def granted(self, dollars: int) -> int:
        """How many dollars are granted, one by one."""
        return [await self.asks(1) for _ in range(dollars)].count(Reason.OK)


def day(limit: int, window: Window = UTC_DAY, **fields: object) -> Budget:
    return budget(limit, window=window, **fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in_force.json"


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [
        (UTC_DAY, BERLIN_DAY, "2026-06-11"),
        (BERLIN_DAY, UTC_DAY, "2026-06-10T22:00"),
        (UTC_DAY, HOUR, "2026-06-11"),
        (UTC_DAY, MONTH, "2026-06-11"),
        (UTC_DAY, ROLLING, "2026-06-11"),
        (MONTH, UTC_DAY, "2026-07-01"),
        (ROLLING, UTC_DAY, "2026-06-11T12:00"),
    ],
    ids=str,
)
async def test_a_budget_is_in_force_as_it_was_until_its_window_ends(
    path: Path, before: Window, after: Window, ends: str
) -> None:
    sidecar = Sidecar(path, day(10, before))
    assert await sidecar.granted(11) == 10

    sidecar.loads(day(10, after))

    assert await sidecar.granted(3) == 0
    sidecar.desk.clock.now = ms(ends) - 1
    assert await sidecar.granted(3) == 0
    sidecar.at(ends)
    assert [one.until_ms for one in sidecar.desk.authorizer.rules.policies.outgoing] == [ms(ends)]
    assert await sidecar.granted(11) == 10


async def test_the_new_budget_counts_from_the_change_on(path: Path) -> None:
    sidecar = Sidecar(path, day(10))
    assert await sidecar.granted(4) == 4

    sidecar.loads(day(8, BERLIN_DAY))

    assert await sidecar.granted(11) == 6, "what the old limit leaves"
    sidecar.at("2026-06-10T22:00")
    assert await sidecar.granted(11) == 0, "a new day in Berlin, and still the old one in UTC"
    sidecar.at("2026-06-11")
    assert await sidecar.granted(11) == 8
    sidecar.at("2026-06-11T22:00")
    assert await sidecar.granted(11) == 8


async def test_changing_to_and_fro_grants_no_more(path: Path) -> None:
    sidecar = Sidecar(path, day(10))
    granted = 0
    for window in (BERLIN_DAY, Window(Period.DAY, "Asia/Kathmandu"), UTC_DAY, HOUR, BERLIN_DAY):
        granted += await sidecar.granted(4)
        sidecar.loads(day(10, window))
        sidecar.loads(day(10, window))
    assert granted + await sidecar.granted(11) == 10


async def test_where_both_windows_begin_together_they_are_one_counter(path: Path) -> None:
    reykjavik = Window(Period.DAY, "Atlantic/Reykjavik")
    sidecar = Sidecar(path, day(10))
    assert await sidecar.granted(4) == 4
    sidecar.loads(day(10, reykjavik))
    assert await sidecar.granted(11) == 6


@pytest.mark.parametrize(
    "scope",
    [
        {"scope": Scope.TEAM, "name": "crew"},
        {"scope": Scope.ORG, "name": "default"},
        {"scope": Scope.PROVIDER, "name": "openai"},
        {"scope": Scope.MODEL, "name": "sm*", "model": "sm*"},
        {"model": "small"},
        {"explicit_id": "mine"},
    ],
    ids=str,
)
async def test_it_is_so_for_every_scope_and_counts_only_what_it_counted(
    path: Path, scope: dict
) -> None:
    def load(sidecar: Sidecar, window: Window) -> None:
        of = day(10, window, **scope)
        found = rules(agent(of, budget(10_000, explicit_id="all"), team="crew")).policies
        policies = take_over(path, found, sidecar.desk.clock())
        sidecar.desk.authorizer.rules.policies = policies

    sidecar = Sidecar(path, budget(10_000, explicit_id="all"))
    load(sidecar, UTC_DAY)
    assert await sidecar.granted(11) == 10
    load(sidecar, BERLIN_DAY)
    assert await sidecar.asks(1) is Reason.BUDGET_HELD
    if "model" in scope:
        other = await sidecar.desk.authorizer.authorize(call(1, sent={"model": "large"}))
        assert other.reason is Reason.OK
    sidecar.at("2026-06-11")
    assert await sidecar.asks(1) is Reason.OK


async def test_another_agents_outgoing_budget_stands_in_nobodys_way(path: Path) -> None:
    sidecar = Sidecar(path, day(10), day(3, name="other"))
    sidecar.loads(day(10), day(3, BERLIN_DAY, name="other"))
    assert len(sidecar.desk.authorizer.rules.policies.outgoing) == 1
    lines = [line for line in await verdict_lines(sidecar) if line.name == "other"]
    assert len(lines) == 1, "the new one, which this test gives to the agent itself"


async def verdict_lines(sidecar: Sidecar) -> Sequence[Budget]:
    verdict = await sidecar.desk.authorizer.authorize(call(1))
    return [line.budget for line in verdict.lines if line.budget is not None]


async def test_a_budget_that_is_removed_is_gone_at_once(path: Path) -> None:
    minute = day(2, Window(Period.MINUTE))
    sidecar = Sidecar(path, day(10), minute)
    assert await sidecar.granted(3) == 2
    sidecar.loads(day(10))
    assert await sidecar.granted(11) == 8
    assert not sidecar.desk.authorizer.rules.policies.outgoing


async def test_what_was_replaced_goes_with_what_replaced_it(path: Path) -> None:
    model = {"model": "small"}
    sidecar = Sidecar(path, day(100), day(10, **model))
    assert await sidecar.granted(11) == 10
    sidecar.loads(day(100), day(10, BERLIN_DAY, **model))
    assert await sidecar.granted(1) == 0
    sidecar.loads(day(100))
    assert await sidecar.granted(1) == 1


async def test_a_total_has_no_boundary_so_what_replaces_it_is_alone_at_once(path: Path) -> None:
    sidecar = Sidecar(path, day(10, TOTAL))
    assert await sidecar.granted(11) == 10
    sidecar.loads(day(10))
    assert await sidecar.granted(11) == 10


async def test_another_limit_alone_is_in_force_at_once(path: Path) -> None:
    sidecar = Sidecar(path, day(10))
    assert await sidecar.granted(11) == 10
    sidecar.loads(day(15))
    assert await sidecar.granted(11) == 5
    assert not sidecar.desk.authorizer.rules.policies.outgoing


def test_a_record_that_cannot_be_read_or_written_stops_the_service(path: Path) -> None:
    policies = rules(agent(day(10))).policies
    path.write_text("{")
    with pytest.raises(InForceError, match=r"in_force\.json: cannot be read"):
        take_over(path, policies, 0)
    path.unlink()
    with pytest.raises(InForceError, match="cannot be written"):
        take_over(path.parent / "none" / "in_force.json", policies, 0)


async def test_what_an_org_of_before_holds_still_expires(path: Path) -> None:
    former, desk, ended = "former", Desk.of(agent(day(10))), []
    before = rules(agent(day(10))).policies
    clock: Clock = desk.clock
    take_over(path, replace(before, orgs=(former,)), clock())
    (key, at_ms) = counter_key(former, "agent/bot/day/usd", 0), clock()
    command = Reserve(
        "r", former, at_ms, at_ms + 1, (Hold(key, DOLLAR, DOLLAR, at_ms + 86_400_000),)
    )
    await desk.memory.reserve(command)

    policies = take_over(path, before, clock())
    made = desk.authorizer
    made.rules.policies = policies
    clock.now += 2
    leases = ExpiryLoop(
        made.rules, desk.memory, desk.room, clock, {}, expired=ended.append, backlog=lambda: 0
    )
    await leases.look()

    assert policies.orgs == ("default",)
    assert [ending.id for ending in ended] == ["r"]
    assert await desk.memory.balances(former, [key], clock()) == (Balance(DOLLAR, 0),)
