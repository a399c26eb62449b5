"""Waiting for held room: who is refused only because of calls in flight waits for one to end.

Settlement trails the answer by the access log's flush. Without a wait, an agent that calls back to
back would be refused by its own holds while its budget is not yet spent.
"""

import asyncio
import itertools
from collections.abc import Iterable

_POLL_SECONDS = 0.1
"""Another process may have settled: look again this often, while not too many wait."""

_LOOKS_PER_SECOND = 200
"""All who wait together look no more often than this: each look is a command to the store, which
calls that need not wait share with them."""

_WOKEN_AT_ONCE = 8
"""An ending gives room to few: waking all who wait for it would have them all look at once."""

_WAITERS_MAX = 1024
"""Beyond it nobody waits: a flood of refusals must not pile up in memory."""


class HeldRoom:
    """Wakes Checks when a reservation of one of their counters has ended."""

    def __init__(self) -> None:
        # Each in order of arrival: a dict is a set that remembers it.
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether so many wait that nobody else may."""
        return self._count >= _WAITERS_MAX

    def notify(self, keys: Iterable[str]) -> None:
        """Something that was held on these counters has ended: those who wait look in turn."""
        for key in keys:
            waiting = self._waiting.get(key, {})
            asleep = (waiter for waiter in waiting if not waiter.done())
            for waiter in itertools.islice(asleep, _WOKEN_AT_ONCE):
                waiter.set_result(None)

    async def wait(self, keys: Iterable[str], seconds: float) -> None:
        """Return when one of the counters may have changed, at the latest after a short while."""
        waiter = asyncio.get_running_loop().create_future()
        keys = tuple(keys)
        for key in keys:
            self._waiting.setdefault(key, {})[waiter] = None
        self._count += 1
        look_after = max(_POLL_SECONDS, self._count / _LOOKS_PER_SECOND)
        try:
            async with asyncio.timeout(min(seconds, look_after)):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._count -= 1
            for key in keys:
                others = self._waiting.get(key)
                if others is not None:
                    others.pop(waiter, None)
                    if not others:
                        del self._waiting[key]
