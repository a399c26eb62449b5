"""Outages of a sidecar's parts that last for a while, and what the store remembers of leases."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from servers import until
from sidecar import Sidecar

EXPECTED = {"settled", "released", "duplicate"}


@contextmanager
def frozen(sidecar: Sidecar, part: str) -> Iterator[None]:
    """A part that does not run; connections to it stay open and take bytes."""
    pid = sidecar.pid_of(part)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def killed(sidecar: Sidecar, part: str) -> Iterator[None]:
    """A part that is killed, and so is each successor that `up` starts, until the block ends."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.01):
            with suppress(OSError):  # between two lives, or while it is looked at
                sidecar.kill(part)

    sidecar.kill(part)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


@contextmanager
def away(sidecar: Sidecar, parts: dict[str, str]) -> Iterator[None]:
    """Several parts at once, each `frozen` or `killed`; the sidecar works again afterwards."""
    with ExitStack() as outage:
        for part, how in parts.items():
            outage.enter_context({"frozen": frozen, "killed": killed}[how](sidecar, part))
        yield
    until(lambda: answers(sidecar), 60)


def answers(sidecar: Sidecar) -> bool:
    """Whether the service is there and has its store."""
    try:
        sidecar.standing()
    except OSError:
        return False
    return True


def surprises(sidecar: Sidecar) -> list[dict[str, Any]]:
    """Endings that no call has whose entry came in time and only once.

    A service that is killed may not have written that it let a lease run out; then the store knows,
    or the entry that corrected it was `late`.
    """
    path = sidecar.data_dir / "run" / "store.sock"
    with redis.Redis(unix_socket_path=str(path), decode_responses=True) as store:
        keys = list(store.scan_iter("xa1:*:r:*", count=1000))
        expired = [record for key in keys if (record := store.hgetall(key))["state"] == "expired"]
    lines = sidecar.log_lines("settlement")
    return expired + [line for line in lines if line["outcome"] not in EXPECTED]


def spool_files(sidecar: Sidecar) -> list[Path]:
    return sorted((sidecar.data_dir / "spool").glob("*.spool"))


def is_drained(sidecar: Sidecar) -> bool:
    """Whether nothing waits in the spool; a segment goes a moment after its last settlement."""
    return sidecar.metric("extauthz_spool_depth") == 0 and not spool_files(sidecar)
