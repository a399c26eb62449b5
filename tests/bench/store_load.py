"""A process that loads a store; who starts it tells it what to do, a line of JSON at a time.

`python -m bench.store_load NICE`: each line in is answered by one line out. It is niced, so that
what it costs is taken from itself rather than from the store that is measured.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

from bench.one_call import OneCall, rules_of
from bench.sidecars import Sidecar, Tally
from extauthz.ledger import ClockSkewError, Reserved
from extauthz.metrics import Metrics
from extauthz.server.http_listener import raise_descriptor_limit
from extauthz.store.base import StoreError
from extauthz.store.redis import RedisStore

_NICE = 5
_SETTLED_TOGETHER = 64
"""As many as come in one message of the access log at high load."""

_STARTED_TOGETHER = 20


class Worker:
    """Does what it is told, and remembers the reservations that it has open."""

    def __init__(self) -> None:
        self._stores: dict[str, RedisStore] = {}
        self._calls: dict[str, OneCall] = {}
        self._open: list[tuple[str, str]] = []
        self._sidecars: list[Sidecar] = []
        self._tally = Tally()

    async def do(self, what: str, **words: Any) -> dict[str, Any]:
        """One line."""
        answer: dict[str, Any] = await getattr(self, what)(**words)
        return answer

    async def reserve(
        self,
        url: str,
        orgs: list[str],
        count: int,
        lanes: int,
        lease_ms: int | None = None,
        counters: int | None = None,
    ) -> dict[str, Any]:
        """Reserve so many and leave them open; `counters`: each on counters of its own."""
        store, calls = await self._ready(url, orgs)
        left = iter(range(count))

        async def lane() -> None:
            for number in left:
                org = orgs[number % len(orgs)]
                own = None if counters is None else counters + number
                while (id_ := await self._reserved(store, calls[org], lease_ms, own)) is None:
                    pass
                self._open.append((org, id_))

        started = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(lanes)))
        return {"count": count, "seconds": time.perf_counter() - started}

    async def settle(self, url: str, lanes: int) -> dict[str, Any]:
        """Settle all that are open, a few together as the access log brings them."""
        store, count = self._stores[url], len(self._open)

        async def lane() -> None:
            while self._open:
                few, self._open = self._open[:_SETTLED_TOGETHER], self._open[_SETTLED_TOGETHER:]
                self._open += await self._settle(store, few)

        started = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(lanes)))
        return {"count": count, "seconds": time.perf_counter() - started}

    async def call(self, url: str, orgs: list[str], seconds: float, lanes: int) -> dict[str, Any]:
        """Reserve and settle, one after the other in each lane, for so long."""
        store, calls = await self._ready(url, orgs)
        until, done = time.perf_counter() + seconds, 0

        async def lane(org: str) -> None:
            nonlocal done
            while time.perf_counter() < until:
                id_ = await self._reserved(store, calls[org])
                if id_ is not None and not await self._settle(store, [(org, id_)]):
                    done += 1

        started = time.perf_counter()
        await asyncio.gather(*(lane(orgs[number % len(orgs)]) for number in range(lanes)))
        return {"count": done, "seconds": time.perf_counter() - started}

    async def probe(self, url: str, org: str, seconds: float, every_s: float) -> dict[str, Any]:
        """How long a reserve takes, one at a time, at an even pace."""
        store, calls = await self._ready(url, [org])
        await store.reserve(calls[org].reserve())  # the lane is opened by the first
        took, failed, until = [], 0, time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            try:
                answer = await store.reserve(calls[org].reserve())
            except (StoreError, ClockSkewError):
                failed += 1
            else:
                took.append((time.perf_counter() - started) * 1e3)
                await self._settle(store, [(org, answer.id)])
            await asyncio.sleep(max(0.0, started + every_s - time.perf_counter()))
        cuts = quantiles(took, n=100, method="inclusive") if len(took) > 1 else [0.0] * 99
        return {"count": len(took), "failed": failed, "p50_ms": cuts[49], "p99_ms": cuts[98]}

    async def sidecars(
        self, url: str, org: str, count: int, calls_per_s: float, directory: str
    ) -> dict[str, Any]:
        """Start so many, which go on until `stop`."""
        rules, metrics = rules_of(org), Metrics()
        one = await OneCall.of(rules)
        every_s = count / calls_per_s

        async def start(number: int) -> None:
            place = Path(directory) / f"{os.getpid()}-{number}"
            sidecar = Sidecar(url, rules, one, place, (metrics, self._tally))
            self._sidecars.append(sidecar)
            await sidecar.start(every_s * number / count, every_s)

        for first in range(0, count, _STARTED_TOGETHER):
            together = range(first, min(first + _STARTED_TOGETHER, count))
            await asyncio.gather(*map(start, together))
        return {"count": count}

    async def tally(self) -> dict[str, Any]:
        """What the sidecars have met so far."""
        return vars(self._tally)

    async def stop(self) -> dict[str, Any]:
        """End the sidecars."""
        await asyncio.gather(*(sidecar.stop() for sidecar in self._sidecars))
        self._sidecars.clear()
        return vars(self._tally)

    async def _ready(self, url: str, orgs: list[str]) -> tuple[RedisStore, dict[str, OneCall]]:
        """The store with its lanes open, and what the calls of each org ask of it."""
        if url not in self._stores:
            self._stores[url] = RedisStore.from_url(url)
            await self._stores[url].check_ready()
        for org in orgs:
            if org not in self._calls:
                self._calls[org] = await OneCall.of(rules_of(org))
        return self._stores[url], self._calls

    async def _reserved(
        self,
        store: RedisStore,
        one: OneCall,
        lease_ms: int | None = None,
        counters: int | None = None,
    ) -> str | None:
        """The id of one more; None where a crowded machine was too slow for it."""
        try:
            answer = await store.reserve(one.reserve(lease_ms, counters))
        except (StoreError, ClockSkewError):
            return None
        assert isinstance(answer, Reserved), answer
        return answer.id

    async def _settle(
        self, store: RedisStore, open_ones: list[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """Settle these; those that are left where the machine was too slow."""
        endings = await store.settle_many([self._calls[org].settle(id_) for org, id_ in open_ones])
        for ending in endings:
            if isinstance(ending, Exception) and not isinstance(
                ending, StoreError | ClockSkewError
            ):
                raise ending
        pairs = zip(open_ones, endings, strict=True)
        return [one for one, ending in pairs if isinstance(ending, Exception)]


class Process:
    """Such a process, from outside."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def tell(self, what: str, **words: Any) -> None:
        """Let it begin; `told` waits for the end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"what": what, **words}) + "\n")
        self._process.stdin.flush()

    def told(self) -> dict[str, Any]:
        """Its answer to the oldest line that it was told."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process that loads the store has ended: see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, what: str, **words: Any) -> dict[str, Any]:
        """Both."""
        self.tell(what, **words)
        return self.told()


@contextmanager
def processes(count: int, nice: int = _NICE) -> Iterator[list[Process]]:
    """So many of them; they end with the block."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "bench.store_load", str(nice)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(count)
    ]
    try:
        yield [Process(one) for one in started]
    finally:
        for one in started:
            one.kill()
            one.communicate()


async def main() -> None:
    """Lines in, lines out."""
    logging.disable()  # what fails is counted
    worker, loop = Worker(), asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await worker.do(**json.loads(line))), flush=True)


if __name__ == "__main__":
    os.nice(int(sys.argv[1]))
    raise_descriptor_limit()
    asyncio.run(main())
