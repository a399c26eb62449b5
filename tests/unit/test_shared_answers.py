"""What anybody may ask for as often as they like: `/metrics` and `/readyz`."""

import asyncio

from extauthz.admin.http import Shared


class Counter:
    def __init__(self) -> None:
        self.asked, self.now = 0, 0

    async def ask(self) -> int:
        self.asked += 1
        told = self.now
        await asyncio.sleep(0)
        return told


async def test_who_asks_after_a_change_is_told_of_it() -> None:
    counter = Counter()
    shared = Shared(counter.ask)
    for number in range(3):
        counter.now = number
        assert await shared.get() == number


async def test_a_crowd_is_answered_by_one_asking_after_the_one_under_way() -> None:
    counter = Counter()
    shared = Shared(counter.ask)

    first = asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    counter.now = 1
    crowd = await asyncio.gather(*(shared.get() for _ in range(100)))

    assert await first == 0
    assert set(crowd) == {1}
    assert counter.asked == 2


async def test_an_answer_that_could_not_be_had_is_asked_for_again() -> None:
    class Broken(Counter):
        async def ask(self) -> int:
            if await super().ask() == 0:
                raise OSError("away")
            return 1

    counter = Broken()
    shared = Shared(counter.ask)
    told = await asyncio.gather(shared.get(), return_exceptions=True)
    counter.now = 1

    assert isinstance(told[0], OSError)
    assert await shared.get() == 1
