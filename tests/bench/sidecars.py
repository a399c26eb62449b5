"""Sidecars without their calls' own work: what each does to a store that all of them share.

Of the real service each has its own `RedisStore`, `ExpiryLoop` and `Archiver`, with the service's
own pace, and asks what a readiness probe and a scrape of its metrics ask. Left out is what asks the
store for nothing (gRPC, prices, the access log), and audits, which one sidecar does for all.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.one_call import OneCall
from extauthz.admin.standing import standing_now
from extauthz.archive import Archive, ArchiveDirectory, Chain
from extauthz.ledger import ClockSkewError, Ending, Reserved
from extauthz.metrics import Metrics
from extauthz.service.archiver import Archiver
from extauthz.service.background import ExpiryLoop
from extauthz.service.rules import Rules, system_clock
from extauthz.service.waiting import HeldRoom
from extauthz.store.base import StoreError
from extauthz.store.redis import RedisStore

PROBE_SECONDS, SCRAPE_SECONDS = 10.0, 15.0
"""The pace of a Kubernetes readiness probe, and a usual one of Prometheus."""


class Tally:
    """What the sidecars of one process have met."""

    def __init__(self) -> None:
        self.calls = self.refused = self.failed = self.expired = 0

    def expired_one(self, _ending: Ending) -> None:
        """A lease that ran out was charged by one of these."""
        self.expired += 1


class Sidecar:
    """One of them."""

    def __init__(
        self, url: str, rules: Rules, one: OneCall, directory: Path, shared: tuple[Metrics, Tally]
    ) -> None:
        metrics, self._tally = shared
        self._rules, self._one = rules, one
        self.store = RedisStore.from_url(url)
        self._expiry = ExpiryLoop(
            rules,
            self.store,
            HeldRoom(),
            system_clock,
            {},
            self._tally.expired_one,
            backlog=lambda: 0,
        )
        self._archiver = Archiver(
            lambda: rules.policies.all_orgs,
            self.store,
            lambda org: Archive(ArchiveDirectory(directory / org), Chain(org, None)),
            system_clock,
            metrics,
            holder=directory.name,
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, first_call_in_s: float, a_call_every_s: float) -> None:
        """As the service starts: ready, the archive, then everything in the background."""
        while not await self._is_ready():
            self._tally.failed += 1
        await self._archiver.begin()
        phase = first_call_in_s / a_call_every_s  # so that not all probe at the same moment
        paced = [
            (self.store.check_ready, phase * PROBE_SECONDS, PROBE_SECONDS),
            (self._scrape, phase * SCRAPE_SECONDS, SCRAPE_SECONDS),
            (self._call, first_call_in_s, a_call_every_s),
        ]
        work = [self._expiry.run(), self._archiver.run()]
        work += [self._every(*one) for one in paced]
        self._tasks = [asyncio.create_task(one) for one in work]

    async def stop(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.store.close()

    async def _is_ready(self) -> bool:
        """Where many start on few cores, some wait for too long: then they are started again."""
        try:
            await self.store.check_ready()
        except StoreError:
            return False
        return True

    async def _every(
        self, work: Callable[[], Awaitable[None]], first_in_s: float, every_s: float
    ) -> None:
        await asyncio.sleep(first_in_s)
        while True:
            started = time.monotonic()
            try:
                await work()
            except (StoreError, ClockSkewError):
                self._tally.failed += 1
            await asyncio.sleep(max(0.0, started + every_s - time.monotonic()))

    async def _scrape(self) -> None:
        await standing_now(self._rules, self.store, system_clock)

    async def _call(self) -> None:
        answer = await self.store.reserve(self._one.reserve())
        if not isinstance(answer, Reserved):
            self._tally.refused += 1
            return
        (ending,) = await self.store.settle_many([self._one.settle(answer.id)])
        if isinstance(ending, Exception):
            self._tally.failed += 1
        else:
            self._tally.calls += 1
