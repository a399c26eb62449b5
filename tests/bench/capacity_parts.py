"""What is measured for docs/capacity.md: one shard, many sidecars on it, a Cluster of three."""

import asyncio
import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusters import SLOTS, Cluster, slot_of

from bench.measure import Figure, Sample
from bench.processes import until
from bench.store_load import Process, processes
from bench.watched import Watched, a_store
from extauthz.archive import Archive, ArchiveDirectory, Chain
from extauthz.metrics import Metrics
from extauthz.service.archiver import Archiver
from extauthz.service.rules import system_clock
from extauthz.store.codec import leases_key, rows_key
from extauthz.store.redis import RedisStore

ORG = "acme"
LANES = 64
_PROBE_EVERY_S = 0.02
_LEASE_MS = 3_000
_PATIENCE_S = 30
_OPEN_AT_ONCE_MAX = 900
"""Reserves of one process whose leases are to run out together."""

Found = dict[str, Figure]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    seconds: float
    reservations: int
    sidecars: tuple[int, ...]
    calls_per_s: float
    rounds: int = 3
    load_processes: int = 2


def one_shard(sizes: Sizes) -> Found:
    """What one server carries, and what each thing in it takes."""
    found: dict[str, list[float]] = {}

    def note(**figures: float) -> None:
        for name, value in figures.items():
            found.setdefault(name, []).append(value)

    with a_store() as (url, store), processes(sizes.load_processes) as workers:
        share = sizes.reservations // len(workers)
        together(workers, "reserve", url=url, orgs=[ORG], count=50, lanes=LANES)
        together(workers, "settle", url=url, lanes=4)

        memory, log = store.memory_bytes, store.log_bytes
        reserved = _with_cpu(
            store, workers, "reserve", url=url, orgs=[ORG], count=share, lanes=LANES
        )
        note(**{f"reserve_{name}": value for name, value in reserved.items()})
        open_bytes = (store.memory_bytes - memory) / reserved["count"]
        settled = _with_cpu(store, workers, "settle", url=url, lanes=4)
        note(**{f"settle_{name}": value for name, value in settled.items()})
        row_bytes = _bytes_of_rows(store) / store.client.xlen(rows_key(ORG))
        ended_bytes = (store.memory_bytes - memory) / settled["count"] - row_bytes
        log_bytes = (store.log_bytes - log) / settled["count"]

        note(
            open_bytes=open_bytes,
            ended_bytes=ended_bytes,
            row_bytes=row_bytes,
            log_bytes=log_bytes,
            counter_bytes=_counter_bytes(share, open_bytes),
        )
        rows = store.client.xlen(rows_key(ORG))
        seconds, archived_bytes = asyncio.run(_archive(url))
        note(archive_rows_per_s=rows / seconds, archived_bytes=archived_bytes / rows)
        for _ in range(sizes.rounds):
            done = _with_cpu(
                store, workers, "call", url=url, orgs=[ORG], seconds=sizes.seconds, lanes=LANES
            )
            note(**{f"call_{name}": value for name, value in done.items()})
    return {name: Figure(tuple(values)) for name, values in found.items()}


def shared_by(count: int, sizes: Sizes) -> Found:
    """What so many sidecars do to a store that they share."""
    with (
        a_store() as (url, store),
        tempfile.TemporaryDirectory(prefix="xa-bench-") as directory,
        processes(min(count, sizes.load_processes)) as workers,
        processes(1, nice=0) as (prober,),
    ):
        prober.ask("probe", url=url, org=ORG, seconds=0.1, every_s=_PROBE_EVERY_S)
        memory, before = store.client_bytes, store.connections
        started = time.monotonic()
        share = {"calls_per_s": sizes.calls_per_s / len(workers), "directory": directory}
        for n, worker in enumerate(workers):
            own = count * (n + 1) // len(workers) - count * n // len(workers)
            worker.tell("sidecars", url=url, org=ORG, count=own, **share)
        for worker in workers:
            worker.told()
        found = {"start_seconds": time.monotonic() - started}
        found["connections"] = (store.connections - before) / count
        found["connection_bytes"] = (store.client_bytes - memory) / (store.connections - before)
        found |= _background(store, sizes.seconds, count)
        probed = prober.ask(
            "probe", url=url, org=ORG, seconds=sizes.seconds, every_s=_PROBE_EVERY_S
        )
        found |= {name: float(probed[name]) for name in ("p50_ms", "p99_ms", "failed")}
        leases = min(sizes.reservations, _OPEN_AT_ONCE_MAX)
        found |= _leases_run_out(store, url, prober, leases)
        told = [worker.ask("stop") for worker in workers]
        found["calls_failed"] = float(sum(one["failed"] for one in told))
    return {name: Figure((value,)) for name, value in found.items()}


def in_a_cluster(sizes: Sizes) -> dict[str, Found]:
    """Three nodes: the calls of one org, then those of several that all nodes share."""
    found = {}
    with Cluster() as cluster, processes(sizes.load_processes) as workers:
        nodes = [Watched(node.client()) for node in cluster.nodes]
        names = [f"org-{number}" for number in range(200)]
        per_node = [
            [name for name in names if slot_of(name) * len(nodes) // SLOTS == n][:2]
            for n in range(len(nodes))
        ]
        for what, orgs in (
            ("one org", per_node[0][:1]),
            ("six orgs", [org for few in per_node for org in few]),
        ):
            together(workers, "reserve", url=cluster.url, orgs=orgs, count=12, lanes=6)
            together(workers, "settle", url=cluster.url, lanes=4)
            words = {"url": cluster.url, "orgs": orgs, "seconds": sizes.seconds}
            before = [node.cpu_seconds for node in nodes]
            done = together(workers, "call", lanes=LANES - LANES % len(orgs), **words)
            used = [node.cpu_seconds - at for node, at in zip(nodes, before, strict=True)]
            count = sum(one["count"] for one in done)
            found[what] = {
                "call_per_s": Figure((sum(one["count"] / one["seconds"] for one in done),)),
                "call_cpu_us": Figure((sum(used) / count * 1e6,)),
                "busiest_share": Figure((max(used) / sum(used),)),
                "busiest_cpu_us": Figure((max(used) / count * 1e6,)),
            }
        for node in nodes:
            node.client.close()
    return found


def together(workers: list[Process], what: str, **words: Any) -> list[dict[str, Any]]:
    """The same of all at once."""
    for worker in workers:
        worker.tell(what, **words)
    return [worker.told() for worker in workers]


def _with_cpu(store: Watched, workers: list[Process], what: str, **words: Any) -> Sample:
    used, scripts, started = store.cpu_seconds, store.script_seconds, time.monotonic()
    done = together(workers, what, **words)
    used, seconds = store.cpu_seconds - used, time.monotonic() - started
    scripts = store.script_seconds - scripts
    count = sum(one["count"] for one in done)
    return {
        "count": count,
        "per_s": sum(one["count"] / one["seconds"] for one in done),
        "cpu_us": used / count * 1e6,
        "script_us": scripts / count * 1e6,
        "busy": used / seconds,
    }


def _background(store: Watched, seconds: float, count: int) -> dict[str, float]:
    """What the store does for sidecars that hardly call."""
    asked = store.commands("evalsha")
    until(lambda: store.commands("evalsha") > asked + 2 * count, "the sidecars do not look")
    used, looks, started = store.cpu_seconds, store.commands("evalsha"), time.monotonic()
    until(lambda: time.monotonic() > started + seconds, "time passes")
    passed = time.monotonic() - started
    looks = store.commands("evalsha") - looks
    return {
        "busy": (store.cpu_seconds - used) / passed,
        # Below one, the simulation did not keep up: then the store had less to do than it would.
        "scripts_per_sidecar_s": looks / count / passed,
    }


def _leases_run_out(store: Watched, url: str, prober: Process, leases: int) -> dict[str, float]:
    """Calls nobody settles, as a host that died leaves them; who charges them, and for how long."""
    prober.ask("reserve", url=url, orgs=[ORG], count=leases, lanes=LANES, lease_ms=_LEASE_MS)
    due_ms = system_clock() + _LEASE_MS
    until(lambda: system_clock() > due_ms - 1_000, "time passes")

    def left() -> int:
        return store.client.zcount(leases_key(ORG), "-inf", due_ms)

    used, reads = store.cpu_seconds, store.commands("hgetall")
    prober.tell("probe", url=url, org=ORG, seconds=_LEASE_MS / 1e3, every_s=_PROBE_EVERY_S)
    until(lambda: system_clock() > due_ms, "time passes")
    with contextlib.suppress(TimeoutError):  # then some are left, which is a figure too
        until(lambda: not left(), "nobody charges leases", _PATIENCE_S)
    charged_s = (system_clock() - due_ms) / 1e3
    probed = prober.told()
    reads = store.commands("hgetall") - reads - 2 * probed["count"]
    return {
        "expiry_seconds": charged_s,
        "expiry_left": float(left()),
        "expiry_cpu_s": store.cpu_seconds - used,
        # One read before the script and one in it, for each sidecar that tries.
        "expiry_tries_per_lease": reads / 2 / leases,
        "expiry_p99_ms": probed["p99_ms"],
        "expiry_failed": float(probed["failed"]),
    }


def _counter_bytes(count: int, open_bytes: float) -> float:
    """What a counter takes: reservations that share none take three of them each besides."""
    with a_store() as (url, store), processes(1) as (worker,):
        words = {"url": url, "orgs": [ORG], "lanes": LANES}
        worker.ask("reserve", count=LANES, **words)
        memory = store.memory_bytes
        worker.ask("reserve", count=count, counters=0, **words)
        return ((store.memory_bytes - memory) / count - open_bytes) / 3


async def _archive(url: str) -> tuple[float, int]:
    """Archive what there is, as the service does: in how long, and in how many bytes of files."""
    store = RedisStore.from_url(url)
    with tempfile.TemporaryDirectory(prefix="xa-bench-") as directory:
        place = Path(directory)
        archive = Archive(ArchiveDirectory(place), Chain(ORG, None))
        archiver = Archiver(
            lambda: [ORG], store, lambda _: archive, system_clock, Metrics(), holder="one"
        )
        started = time.monotonic()
        await archiver.begin()
        seconds = time.monotonic() - started
        await archiver.finish()
        await store.close()
        return seconds, await asyncio.to_thread(_bytes_of_files, place)


def _bytes_of_files(place: Path) -> int:
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def _bytes_of_rows(store: Watched) -> int:
    return int(store.client.memory_usage(rows_key(ORG), samples=0) or 0)
