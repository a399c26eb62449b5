"""Agents that reserve and settle on a store without pause, whatever happens to its servers."""

import asyncio
from collections import Counter
from typing import Any, Self

from ledger_calls import DAY_MS, Call

from extauthz.ledger import Balance, ClockSkewError, Ending, Outcome, Reserved
from extauthz.store.base import StoreUnavailableError
from extauthz.store.redis import RedisStore

PATIENCE_SECONDS = 90


class LedgerLoad:
    """Agents that reserve and settle on one org, and what they were told."""

    def __init__(self, store: RedisStore, agents: int = 8) -> None:
        self.first = Call()
        self.settled: list[Call] = []
        self.held: list[Call] = []
        self.refusals: list[Exception] = []
        self.outcomes: Counter[Outcome] = Counter()
        self._store, self._agents = store, agents
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._agent()) for _ in range(self._agents)]
        await self.until_settled(20)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def until_settled(self, more: int) -> None:
        """Wait until so many more calls have been settled."""
        wanted = len(self.settled) + more
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.settled) < wanted:
                for task in self._tasks:
                    if task.done():
                        await task
                await asyncio.sleep(0.005)

    async def until_refused(self, times: int) -> None:
        """Wait until so many commands have had no answer."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.refusals) < times:  # noqa: ASYNC110 of several tasks
                await asyncio.sleep(0.005)

    async def _agent(self) -> None:
        while not self._stop.is_set():
            call = self.first.sibling()
            if await self._told(self._reserve(call)) is None:
                # As the service does: who saw no answer releases, until that is acknowledged.
                await self._insist(self._release, call)
                continue
            self.held.append(call)
            ending = await self._insist(self._settle, call)
            # A repeat after an answer that was lost is a duplicate, and counted once.
            assert ending.outcome in (Outcome.SETTLED, Outcome.DUPLICATE, Outcome.RECOVERED), ending
            self.outcomes[ending.outcome] += 1
            self.settled.append(call)

    async def _reserve(self, call: Call) -> object:
        answer = await self._store.reserve(call.reserve(limit=10**12, lease_ms=DAY_MS))
        assert isinstance(answer, Reserved), answer
        return answer

    async def _release(self, call: Call) -> object:
        return await self._store.release(call.release())

    async def _settle(self, call: Call) -> Ending:
        return await self._store.settle(call.settle())

    async def _insist(self, command: Any, call: Call) -> Any:
        while True:
            if (answer := await self._told(command(call))) is not None:
                return answer
            await asyncio.sleep(0.01)

    async def _told(self, answer: Any) -> Any:
        try:
            return await answer
        except (StoreUnavailableError, ClockSkewError) as error:
            self.refusals.append(error)
            return None


def once_each(calls: list[Call]) -> tuple[Balance, Balance]:
    """The balances if every call was billed once."""
    return Balance(spent=700 * len(calls)), Balance(spent=70 * len(calls))
