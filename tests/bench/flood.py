"""`python -m bench.flood`: what a flood of denials costs an agent that is no part of it.

The flood is 25 connections of h2load with 100 streams each, so 2,500 requests at any time: with a
key that nobody has, and then with that of an agent whose budget is spent. The bystander calls one
by one on a connection of its own.
"""

import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from bench.check_request import PATH, PROVIDER, body
from bench.processes import free_port, listens_on, running, until
from bench.product import Product, running_product, three_budgets
from bench.through_envoy import HEADERS
from extauthz.identity import hash_key, make_key

_CONNECTIONS, _STREAMS, _SECONDS = 25, 100, 20
_PATH = f"/{PROVIDER}{PATH}"


def bystander(product: Product, seconds: float) -> tuple[list[float], int]:
    """The milliseconds of each call that was answered, and how many were not with 200."""
    place = urlsplit(product.egress)
    took, failed = [], 0
    end = time.monotonic() + seconds
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    while time.monotonic() < end:
        began = time.perf_counter()
        connection.request("POST", _PATH, body(), HEADERS)
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - began) * 1000)
        failed += answer.status != 200
    connection.close()
    return took, failed


def told(name: str, took: list[float], failed: int) -> str:
    """One line of the result."""
    p50, p99 = (statistics.quantiles(took, n=100, method="inclusive")[at] for at in (49, 98))
    return (
        f"{name:<14} {len(took):>6} calls, {failed} failed; "
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {max(took):.1f} ms"
    )


def main() -> None:
    """Measure without and with the flood."""
    port = free_port()
    upstream = [sys.executable, "-m", "bench.upstream", "--port", str(port)]
    nobody, poor = make_key(os.urandom(32)), "xa_bench_poor"
    changes = three_budgets()
    changes["agents"]["poor"] = {
        "keys": [hash_key(poor)],
        "budgets": [{"limit": "0.0000001", "window": "day"}],
    }
    with (
        tempfile.TemporaryDirectory(prefix="xa-bench-") as directory,
        running(upstream, Path(directory, "log")),
        running_product(port, **changes) as product,
    ):
        until(lambda: listens_on(port), "the upstream does not start")
        bystander(product, 2)
        print(told("undisturbed", *bystander(product, _SECONDS)), flush=True)
        for name, key in (("of nobody's", nobody), ("of denials", poor)):
            flooded(product, name, key, _body_file(directory))


def flooded(product: Product, name: str, key: str, file: Path) -> None:
    """Measure in a flood with this key."""
    flood = [
        "h2load", "-c", str(_CONNECTIONS), "-m", str(_STREAMS), "-t", "1",
        "-D", str(_SECONDS + 3), "-H", f"authorization: Bearer {key}",
        "-H", "content-type: application/json", "-d", str(file), product.egress + _PATH,
    ]  # fmt: skip
    with subprocess.Popen(flood, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(1)
        print(told(name, *bystander(product, _SECONDS)), flush=True)
        output = process.communicate()[0]
    print(*(line for line in output.splitlines() if line.startswith(("finished", "status"))))


def _body_file(directory: str) -> Path:
    path = Path(directory, "body")
    path.write_bytes(body())
    return path


if __name__ == "__main__":
    main()
