"""Waiting for held room: prompt for a few, and never a burden on calls that need not wait."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from extauthz.service.waiting import HeldRoom


class LeapingLoop(asyncio.SelectorEventLoop):
    """A loop whose time stands still while anything is left to do, and else leaps to what is due:
    how often one looks within a second is a count, whatever the machine is busy with."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select

        def leap(seconds: float | None = None) -> Any:
            self._now += seconds or 0
            return select(0)

        self._selector.select = leap

    def time(self) -> float:
        return self._now


def run(counting: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        return runner.run(counting)


async def looks(room: HeldRoom, seconds: float) -> int:
    """How often one that waits looks whether it fits by now."""
    loop = asyncio.get_running_loop()
    count, until = 0, loop.time() + seconds
    while (left := until - loop.time()) > 0:
        await room.wait(["counter"], left)
        count += 1
    return count


async def looks_of(many: int, seconds: float) -> int:
    room = HeldRoom()
    return sum(await asyncio.gather(*(looks(room, seconds) for _ in range(many))))


def test_one_that_waits_looks_ten_times_a_second():
    assert run(looks_of(1, 0.95)) == 10


def test_many_that_wait_look_no_more_often_together_than_the_store_can_bear():
    assert run(looks_of(500, 10)) <= 200 * 10 + 500


async def test_an_ending_wakes_a_few_at_once_and_all_in_turn():
    room = HeldRoom()
    waiting = [asyncio.create_task(room.wait(["counter"], 10)) for _ in range(100)]
    await asyncio.sleep(0)
    room.notify(["counter"])
    await asyncio.sleep(0.01)
    woken = [task.done() for task in waiting]
    assert 1 <= sum(woken) < 20
    assert woken[0]
    assert not woken[-1]
    for _ in range(100):
        room.notify(["counter"])
        await asyncio.sleep(0)
    async with asyncio.timeout(0.1):
        await asyncio.gather(*waiting)
    assert not room._waiting
