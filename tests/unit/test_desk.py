"""A change is sent with the time at which it is sent, and a frozen store is called what it is."""

from typing import Any

import pytest
from service_rules import Clock, agent, budget, rules

from extauthz.commands.desk import CommandError, Desk
from extauthz.ledger import Change, ClockSkewError, Override
from extauthz.store.memory import MemoryStore

BUDGET = "agent/bot/day/usd"


class SlowStore(MemoryStore):
    """Lets commands wait, so long each, before it looks at them; as one that was frozen."""

    def __init__(self, clock: Clock, *waits_ms: int) -> None:
        super().__init__(lambda: clock.now + self.ahead_ms)
        self.clock, self.waits_ms, self.ahead_ms = clock, list(waits_ms), 0
        self.sent: list[str] = []

    async def override(self, command: Override) -> Any:
        self.sent.append(command.id)
        self.clock.now += self.waits_ms.pop(0) if self.waits_ms else 0
        return await super().override(command)


def no_archive(org: str) -> Any:
    raise AssertionError(f"these commands have nothing to look for in the archive of {org}")


def desk_of(store: SlowStore) -> Desk:
    return Desk(rules(agent(budget(10))).policies, store, store.clock, no_archive)


async def test_a_command_that_waited_in_a_frozen_store_is_sent_again_and_done_once() -> None:
    store = SlowStore(Clock(), 3000, 1500)

    said = await desk_of(store).apply(Change.SET, BUDGET, id_=None, amount=3)

    assert "done, in force" in said
    assert len(store.sent) == 3
    assert len(set(store.sent)) == 1


async def test_a_store_that_lets_every_command_wait_is_not_blamed_on_the_clock() -> None:
    store = SlowStore(Clock(), *[3000] * 10)

    with pytest.raises(CommandError, match="does not answer in time"):
        await desk_of(store).apply(Change.SET, BUDGET, id_=None, amount=3)

    assert (await store.overrides("default", store.clock())).budgets == {}


async def test_a_clock_that_is_off_is_said_at_once() -> None:
    store = SlowStore(Clock())
    store.ahead_ms = 5000

    with pytest.raises(ClockSkewError):
        await desk_of(store).apply(Change.SET, BUDGET, id_=None, amount=3)

    assert len(store.sent) == 1


async def test_each_command_of_a_desk_has_a_time_of_its_own() -> None:
    store = SlowStore(Clock())
    desk = desk_of(store)
    await desk.apply(Change.SET, BUDGET, id_=None, amount=3, until_ms=store.clock() + 5000)
    assert (await desk.overrides()).limit_in_force(BUDGET, 10, store.clock()) == 3
    store.clock.now += 5000

    assert (await desk.overrides()).budgets == {}
    assert "done" in await desk.apply(Change.PAUSE, "agent:bot", id_=None)
