"""`python -m bench.capacity`: what one store shard carries, and what many sidecars do to it.

It needs no network and nothing but what `make install` brings. On two cores it takes about two
minutes. docs/capacity.md says what the figures mean.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.__main__ import machine
from bench.capacity_parts import Found, Sizes, in_a_cluster, one_shard, shared_by
from bench.table import Line

RESULT = Path(__file__).parent / "capacity.json"
PARTS = ("shard", "sidecars", "cluster")
DAY_SECONDS = 86_400
_DAYS_REMEMBERED = 7


def measured(sizes: Sizes, parts: Sequence[str] = PARTS) -> dict[str, Found]:
    """What is asked for, printed as it is found."""
    found: dict[str, Found] = {}
    if "shard" in parts:
        found["one shard"] = one_shard(sizes)
        _print(shard_lines(found["one shard"]))
    for count in sizes.sidecars if "sidecars" in parts else ():
        name = f"{count:,} sidecars"
        found[name] = shared_by(count, sizes)
        _print(sidecar_lines(name, found[name]))
    for name, figures in in_a_cluster(sizes).items() if "cluster" in parts else ():
        found[f"Cluster, {name}"] = figures
        _print(cluster_lines(name, figures))
    return found


def shard_lines(found: Found) -> Iterator[Line]:
    """One server."""
    for what in ("reserve", "settle", "call"):
        rate, busy = found[f"{what}_per_s"], found[f"{what}_busy"]
        yield Line(f"{what}: a second; the store is busy", f"{rate.text(digits=0)}; {busy.text()}")
        cpu, script = found[f"{what}_cpu_us"], found[f"{what}_script_us"]
        yield Line(
            "  CPU of the store; in its script", f"{cpu.text(' us', 0)}; {script.text(' us', 0)}"
        )
    for what, name in (
        ("an open reservation", "open"),
        ("one that has ended", "ended"),
        ("a counter", "counter"),
        ("a row not yet archived", "row"),
        ("a call, in the store's log", "log"),
        ("a row, in the archive", "archived"),
    ):
        yield Line(f"bytes of {what}", found[f"{name}_bytes"].text(" B", 0))
    yield Line("rows archived a second", found["archive_rows_per_s"].text(digits=0))
    memory = memory_bytes(found, 100)
    yield Line("memory for 100 calls a second, 7 days", f"{memory / 1e9:.1f} GB")


def memory_bytes(found: Found, calls_per_s: float, days: int = _DAYS_REMEMBERED) -> float:
    """What ended calls take, at a rate day and night; all else is small beside it."""
    return found["ended_bytes"].median * calls_per_s * DAY_SECONDS * days


def sidecar_lines(name: str, found: Found) -> Iterator[Line]:
    """A shared one."""
    p50, p99 = found["p50_ms"], found["p99_ms"]
    yield Line(f"{name}: the store is busy", f"{found['busy'].median:.1%}")
    yield Line("  scripts a second of each", found["scripts_per_sidecar_s"].text())
    yield Line("  a reserve, p50 and p99", f"{p50.median:.2f} and {p99.median:.2f} ms")
    yield Line("  connections of each", found["connections"].text(digits=1))
    of = ("seconds", "tries_per_lease", "left")
    expiry = {name: found[f"expiry_{name}"].median for name in of}
    text = f"{expiry['seconds']:.1f} s, {expiry['tries_per_lease']:.1f} tries each"
    text += f", {expiry['left']:.0f} left"
    yield Line("  leases that run out together", text)
    yield Line("  a reserve meanwhile, p99", found["expiry_p99_ms"].text(" ms"))
    failed = found["failed"].median + found["expiry_failed"].median + found["calls_failed"].median
    yield Line("  commands that failed", f"{failed:.0f}")


def cluster_lines(name: str, found: Found) -> Iterator[Line]:
    """Three nodes."""
    yield Line(f"Cluster, {name}: calls a second", found["call_per_s"].text(digits=0))
    yield Line("  CPU of all nodes for a call", found["call_cpu_us"].text(" us", 0))
    yield Line("  of that, of the busiest", found["busiest_cpu_us"].text(" us", 0))


def to_json(found: Mapping[str, Found]) -> dict[str, dict[str, object]]:
    """For the result file."""
    return {
        who: {what: figure.to_json() for what, figure in figures.items()}
        for who, figures in found.items()
    }


def _print(lines: Iterator[Line]) -> None:
    for line in lines:
        print(f"{line.what:<46} {line.found}", flush=True)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    env = os.environ.get
    parser.add_argument("parts", nargs="*", help=f"only these of {', '.join(PARTS)}")
    parser.add_argument("--sidecars", type=int, default=int(env("SIDECARS", "1000")))
    parser.add_argument(
        "--calls", type=float, default=float(env("CALLS", "20")), help="a second, of all sidecars"
    )
    parser.add_argument("--seconds", type=float, default=float(env("SECONDS", "6")))
    parser.add_argument("--reservations", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    counts = tuple(sorted({n for n in (1, 100, given.sidecars) if n <= given.sidecars}))
    result: dict[str, object] = {"machine": machine()}
    sizes = Sizes(given.seconds, given.reservations, counts, given.calls)
    found = measured(sizes, given.parts or PARTS)
    result["load_average_after"] = [round(load, 1) for load in os.getloadavg()]
    result["figures"] = to_json(found)
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
