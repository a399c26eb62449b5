"""The horizon in force when a call was reserved holds for it, whatever a reload says later."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from service_rules import DOLLAR, Desk, agent, budget, call

from extauthz.ledger import CLOCK_SKEW_MS_MAX, Balance, Ending
from extauthz.providers.base import CapturedResponse
from extauthz.service.background import ExpiryLoop
from extauthz.service.completed_call import CompletedCall
from extauthz.service.reconcile import Reconciled, Reconciler
from extauthz.service.settle import Settlement, Settler
from extauthz.store.base import counter_key
from extauthz.windows import Period, Window

HOUR_MS = 3_600_000
SHORT_MS, LONG_MS = HOUR_MS, 48 * HOUR_MS
LEASE_MS = 900_000


class Service:
    """Checks, entries, leases and old log lines of one agent, whose budget's window never ends."""

    def __init__(self, horizon_ms: int) -> None:
        self.budget = budget(100, window=Window(Period.TOTAL))
        self.desk = Desk.of(agent(self.budget))
        made = self.desk.authorizer.reserving
        self.rules, self.clock = made.rules, self.desk.clock
        self.settler = Settler(self.rules, made.store, made.room, self.clock, self)
        self.reconciler = Reconciler(self.settler, self.clock)
        self.leases = ExpiryLoop(
            self.rules, made.store, made.room, self.clock, {}, expired=self.expired,
            backlog=lambda: 0,
        )  # fmt: skip
        self.reload(horizon_ms)

    def settled(self, settlement: Settlement) -> None:
        pass

    def expired(self, ending: Ending) -> None:
        pass

    def reload(self, horizon_ms: int) -> None:
        self.rules.policies = replace(self.rules.policies, settle_horizon_ms=horizon_ms)

    async def asks(self) -> CompletedCall:
        """A call of up to 8 dollars that costs 3, as the access log will tell."""
        record = (await self.desk.authorizer.authorize(call(8))).record
        assert record is not None
        usage = json.dumps({"prompt_tokens": 5, "completion_tokens": 3})
        captured = CapturedResponse(usage=usage, model='"small"', complete=True)
        return CompletedCall(
            record, captured, 200, via_upstream=True, left=True, refused=False, periodic=False,
            ended_at_ms=self.clock(),
        )  # fmt: skip

    async def balance(self) -> Balance:
        key = counter_key("default", self.budget.id, None)
        (found,) = await self.desk.memory.balances("default", [key], self.clock())
        return Balance(found.spent // DOLLAR, found.held // DOLLAR)

    async def line_again(self, line: CompletedCall) -> Reconciled:
        return await self.reconciler.reconcile([line])


End = Callable[[Service, CompletedCall], Awaitable[object]]


async def settles(service: Service, line: CompletedCall) -> None:
    assert await service.settler.settle([line]) == []


async def lease_runs_out(service: Service, _line: CompletedCall) -> None:
    service.clock.now += LEASE_MS
    await service.leases.look()


async def runs_out_and_settles_late(service: Service, line: CompletedCall) -> None:
    await lease_runs_out(service, line)
    await settles(service, line)


ENDS = pytest.mark.parametrize(
    ("ends", "charged"), [(settles, 3), (lease_runs_out, 8), (runs_out_and_settles_late, 3)]
)


@ENDS
async def test_old_lines_are_too_old_though_the_horizon_was_raised(ends: End, charged: int) -> None:
    service = Service(SHORT_MS)
    line = await service.asks()
    await ends(service, line)
    service.clock.now += SHORT_MS
    service.clock.now += 2 * CLOCK_SKEW_MS_MAX
    assert await service.balance() == Balance(charged, 0)
    assert await service.desk.memory.reservations("default", [line.record.reservation_id]) == {}

    service.reload(LONG_MS)

    assert (await service.line_again(line)).too_old == 1
    await service.settler.settle([line])
    assert await service.balance() == Balance(charged, 0)


@ENDS
async def test_an_ending_is_remembered_as_long_as_its_call_could_be_recovered_though_lowered(
    ends: End, charged: int
) -> None:
    service = Service(LONG_MS)
    line = await service.asks()
    service.reload(SHORT_MS)
    await ends(service, line)
    service.clock.now = line.record.reserved_at_ms + LONG_MS

    await service.line_again(line)
    await service.settler.settle([line])

    assert await service.balance() == Balance(3, 0), f"never {charged} + 3"


async def test_a_call_that_the_store_lost_is_recovered_within_its_own_horizon() -> None:
    service = Service(LONG_MS)
    line = await service.asks()
    service.desk.memory._ledgers["default"].reservations.clear()
    service.reload(SHORT_MS)
    service.clock.now += LONG_MS

    await service.line_again(line)

    assert (await service.balance()).spent == 3
