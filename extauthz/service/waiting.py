"""Waiting for held room: who is refused only because of calls in flight waits for one to end.

Settlement trails the answer by the access log's flush. Without a wait, an agent that calls back to
back would be refused by its own holds while its budget is not yet spent.
"""

import asyncio
from collections.abc import Iterable

_POLL_SECONDS = 0.1
"""Another process may have settled: look again at least this often."""

_WAITERS_MAX = 1024
"""Beyond it nobody waits: a flood of refusals must not pile up in memory."""


class HeldRoom:
    """Wakes Checks when a reservation of one of their counters has ended."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether so many wait that nobody else may."""
        return self._count >= _WAITERS_MAX

    def notify(self, keys: Iterable[str]) -> None:
        """Something that was held on these counters has ended."""
        for key in keys:
            for waiter in self._waiting.pop(key, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self, keys: Iterable[str], seconds: float) -> None:
        """Return when one of the counters may have changed, at the latest after a short while."""
        waiter = asyncio.get_running_loop().create_future()
        keys = tuple(keys)
        for key in keys:
            self._waiting.setdefault(key, set()).add(waiter)
        self._count += 1
        try:
            async with asyncio.timeout(min(seconds, _POLL_SECONDS)):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._count -= 1
            for key in keys:
                others = self._waiting.get(key)
                if others is not None:
                    others.discard(waiter)
                    if not others:
                        del self._waiting[key]
