"""`python -m bench`: measure, print a table, write a JSON file."""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from bench import h2load, plot, table
from bench.bodies import json_answers, requests, settlements, streams
from bench.check_rate import check_rate
from bench.measure import Figures, in_turn
from bench.processes import free_port, listens_on, running, until
from bench.product import Product, running_product
from bench.scale import scale
from bench.table import Line
from bench.through_envoy import latency, sixteen

Measure = Callable[[], Figures]
Show = Callable[[Figures], list[Line]]
RESULT = Path(__file__).parent / "result.json"


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
        "checks": (with_product(lambda p: check_rate(p, rounds, count)), table.rate_lines),
        "latency": (
            with_product(lambda p: latency(p, port, rounds, count // 5)),
            table.latency_lines,
        ),
        "sixteen": (
            with_product(lambda p: sixteen(p, port, rounds, count // 2)),
            table.sixteen_lines,
        ),
        "streams": (with_product(lambda p: streams(p, port, rounds, 3)), table.streams_lines),
        "answers": (with_product(lambda p: json_answers(p, port, rounds, 10)), table.answers_lines),
        "requests": (with_product(lambda p: requests(p, rounds, 3)), table.requests_lines),
        "settlements": (
            with_product(lambda p: settlements(p, rounds, count // 2)),
            table.settlements_lines,
        ),
        "scale": (lambda: scale(port, rounds, count // 2), table.scale_lines),
        "start": (lambda: start(port, rounds), table.start_lines),
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
    plot.write(result)


if __name__ == "__main__":
    main()
