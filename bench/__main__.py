"""`python -m bench`: measure, print a table, write a JSON file."""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bench import h2load
from bench.check_rate import check_rate
from bench.measure import Figure, Figures, in_turn
from bench.processes import free_port, listens_on, running, until
from bench.product import Product, running_product
from bench.through_envoy import latency, sixteen

Measure = Callable[[], Figures]
RESULT = Path(__file__).parent / "result.json"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    what: str
    found: str
    goal: str = ""


Show = Callable[[Figures], list[Line]]


def _rate_lines(found: Figures) -> list[Line]:
    rate = {name: figures["per_second"] for name, figures in found.items()}
    cpu = {name: figures["cpu_us"] for name, figures in found.items()}
    each = [
        Line(f"{name}: Checks a second, CPU each", f"{rate[name].text(digits=0)}, {_us(cpu[name])}")
        for name in found
    ]
    return [
        *each,
        Line("ours: CPU of the store for each Check", _us(found["ours"]["store_cpu_us"])),
        Line("throughput, ours / E1", rate["ours"].over(rate["E1"]).text(), ">= 0.75"),
        Line("throughput, ours / E1w", rate["ours"].over(rate["E1w"]).text()),
        Line("CPU of a Check, ours / E1", cpu["ours"].over(cpu["E1"]).text()),
    ]


def _latency_lines(found: Figures) -> list[Line]:
    lines = []
    for percent, goal in (("p50_us", "<= 1.25 x E1"), ("p99_us", "<= 1.5 x E1")):
        alone = found["Envoy alone"][percent]
        lines.append(Line(f"{percent[:3]} of Envoy alone", _us(alone)))
        for name in ("E1", "E1w", "ours"):
            added = found[name][percent].minus(alone)
            lines.append(
                Line(f"{percent[:3]} added by {name}", _us(added), goal if name == "ours" else "")
            )
    return lines


def _sixteen_lines(found: Figures) -> list[Line]:
    rate = {name: figures["per_second"] for name, figures in found.items()}
    lines = [
        Line(f"requests/s at 16 connections, {name}", figure.text(digits=0))
        for name, figure in rate.items()
    ]
    if "LiteLLM" in rate:
        ratio = rate["ours"].over(rate["LiteLLM"])
        return [*lines, Line("requests/s, ours / LiteLLM", ratio.text(digits=1), ">= 25")]
    return [*lines, Line("LiteLLM", "not installed: see bench/litellm.py")]


def _start_lines(found: Figures) -> list[Line]:
    return [Line("`extauthz up` to ready", found["up"]["seconds"].text(" s"), "< 2 s")]


def _us(figure: Figure) -> str:
    return figure.text(" us", 0)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


def start(upstream_port: int, rounds: int) -> Figures:
    """How long `extauthz up` takes until Envoy and Check listen."""

    def run() -> dict[str, float]:
        with running_product(upstream_port) as product:
            return {"seconds": product.ready_seconds}

    return in_turn({"up": run}, rounds)


def rows(port: int, rounds: int, count: int) -> dict[str, tuple[Measure, Show]]:
    """Every row: how it is measured, and what of it is shown."""

    def with_product(measure: Callable[[Product], Figures]) -> Measure:
        def run() -> Figures:
            with running_product(port) as product:
                return measure(product)

        return run

    return {
        "checks": (with_product(lambda p: check_rate(p, rounds, count)), _rate_lines),
        "latency": (with_product(lambda p: latency(p, port, rounds, count // 5)), _latency_lines),
        "sixteen": (with_product(lambda p: sixteen(p, port, rounds, count // 2)), _sixteen_lines),
        "start": (lambda: start(port, rounds), _start_lines),
    }


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", help="only these (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=5000, help="requests in a round of Checks")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if not h2load.is_there():
        sys.exit("h2load is not installed: apt-get install nghttp2-client")
    port = free_port()
    command = [sys.executable, "-m", "bench.upstream", "--port", str(port)]
    result: dict[str, object] = {"machine": machine()}
    with (
        tempfile.TemporaryDirectory(prefix="xa-bench-") as directory,
        running(command, Path(directory) / "log"),
    ):
        until(lambda: listens_on(port), "the upstream does not start")
        known = rows(port, arguments.rounds, arguments.count)
        for name in arguments.rows or known:
            measure, show = known[name]
            load_before = os.getloadavg()[0]
            found = measure()
            for line in show(found):
                print(f"{line.what:<46} {line.found:<44} {line.goal}", flush=True)
            figures = {
                who: {what: figure.to_json() for what, figure in one.items()}
                for who, one in found.items()
            }
            result[name] = {"load_average": round(load_before, 1), "figures": figures}
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
