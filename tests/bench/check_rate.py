"""Checks a second of one service process, against servers that decide nothing."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import h2load
from bench.check_request import CHECK_PATH, check_request, frame
from bench.measure import Figures, Sample, in_turn
from bench.processes import cpu_seconds, listens, running, until
from bench.product import KEY, Product
from extauthz.store.embedded import valkey_command

CONNECTIONS, STREAMS = 2, 32
"""As Envoy on two cores: a connection for each worker thread, 64 calls at once."""

REFUSED_MAX = 0.05
"""Beyond this share of refusals a round measures something else."""

_GRPC_HEADERS = {"content-type": "application/grpc", "te": "trailers"}


@contextmanager
def baselines() -> Iterator[dict[str, tuple[Path, int]]]:
    """E0, E1 and E1w: for each its socket and its process."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xa-bench-")))
        store, log = directory / "store", directory / "log"
        stack.enter_context(running(valkey_command(directory, store), log))
        until(lambda: listens(store), "the store of E1 does not start")
        found = {}
        with_store = ["--store", str(store)]
        for name, more in {"E0": [], "E1": with_store, "E1w": [*with_store, "--write"]}.items():
            path = directory / name
            command = [sys.executable, "-m", "bench.baselines", "--listen", str(path), *more]
            process = stack.enter_context(running(command, log))
            until(lambda path=path: listens(path), f"{name} does not start")  # type: ignore[misc]
            found[name] = (path, process.pid)
        yield found


def checks(socket: Path, message: bytes, count: int) -> h2load.Load:
    """So many Checks."""
    options = ["-B", f"unix:{socket}", "-c", str(CONNECTIONS), "-m", str(STREAMS)]
    return h2load.load(
        f"http://localhost{CHECK_PATH}", frame(message), _GRPC_HEADERS, *options, count=count
    )


def check_load(socket: Path, pid: int, count: int, key: str = KEY) -> Callable[[], Sample]:
    """One round: so many Checks, and the processor time that each took the server."""
    message = check_request(key).SerializeToString()

    def run() -> Sample:
        before = cpu_seconds(pid)
        done = checks(socket, message, count)
        cpu_us = (cpu_seconds(pid) - before) / count * 1e6
        return {"per_second": done.per_second, "cpu_us": cpu_us, "p50_us": done.percentile_us(50)}

    return run


def ours(product: Product, count: int) -> Callable[[], Sample]:
    """As `check_load`, of the whole product; with what its store used.

    What was answered is in a message that h2load does not read: the service's own count says how
    many were a no. On a machine that is busy enough, the store may miss its second now and then.
    """
    one_round = check_load(product.check_socket, product.service, count)

    def run() -> Sample:
        allowed, store = product.allowed, cpu_seconds(product.store)
        sample = one_round()
        store_us = (cpu_seconds(product.store) - store) / count * 1e6
        refused = count - (product.allowed - allowed)
        if refused > count * REFUSED_MAX:
            raise h2load.LoadError(f"{refused} of {count} refused: {product.answers()}")
        return {**sample, "store_cpu_us": store_us, "refused": refused}

    return run


def check_rate(product: Product, rounds: int, count: int) -> Figures:
    """E0, E1, E1w and ours, in turn."""
    with baselines() as found:
        until(lambda: opens(product), "the product does not let every call through")
        contestants = {
            name: check_load(socket, pid, count) for name, (socket, pid) in found.items()
        }
        return in_turn({**contestants, "ours": ours(product, count)}, rounds)


def opens(product: Product) -> bool:
    """Open its connections; whether it lets a few hundred Checks at once through."""
    before, count = product.allowed, 8 * CONNECTIONS * STREAMS
    checks(product.check_socket, check_request(KEY).SerializeToString(), count)
    return product.allowed - before == count
