"""Waiting for held room: prompt for a few, and never a burden on calls that need not wait."""

import asyncio
import time

from extauthz.service.waiting import HeldRoom


async def looks(room: HeldRoom, seconds: float) -> int:
    """How often one that waits looks whether it fits by now."""
    count, until = 0, time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        await room.wait(["counter"], left)
        count += 1
    return count


async def test_one_that_waits_looks_often():
    assert await looks(HeldRoom(), 0.5) >= 4


async def test_many_that_wait_look_no_more_often_together_than_the_store_can_bear():
    room = HeldRoom()
    counts = await asyncio.gather(*(looks(room, 1) for _ in range(500)))
    assert sum(counts) <= 1_200


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
