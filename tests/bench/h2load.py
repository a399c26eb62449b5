"""Load from h2load (Debian: nghttp2-client), and what it says of it."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

_DONE = re.compile(r"finished in ([\d.]+)(us|ms|s)")
_REQUESTS = re.compile(r"requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored")
_STATUS = re.compile(r"status codes: (\d+) 2xx")
_SECONDS_OF = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_TIMEOUT_SECONDS = 300


class LoadError(Exception):
    """The load did not go through: nothing that it measured counts."""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of it."""

    count: int
    seconds: float
    latencies_us: tuple[int, ...]
    answered: int
    """so many with 2xx"""

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return self.count / self.seconds

    def percentile_us(self, percent: int) -> float:
        """The time that so many per cent of the requests took at most."""
        return quantiles(self.latencies_us, n=100, method="inclusive")[percent - 1]


def is_there() -> bool:
    """Whether this machine has it."""
    return shutil.which("h2load") is not None


def load(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *options: str,
    count: int,
    refusals_are_fine: bool = False,
) -> Load:
    """Send the same request so many times.

    Raises:
        LoadError: a request got no answer, or none with 2xx, unless refusals are fine.
    """
    with tempfile.TemporaryDirectory(prefix="xa-bench-") as directory:
        data, log = Path(directory) / "body", Path(directory) / "log"
        data.write_bytes(body)
        given = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
        command: Sequence[str] = [
            *("h2load", "-n", str(count), "-d", str(data), f"--log-file={log}"),
            *given,
            *options,
            url,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
        found = _read(done.stdout + done.stderr, log.read_text(), count)
        if found.answered < count and not refusals_are_fine:
            raise LoadError(done.stdout)
        return found


def _read(said: str, log: str, count: int) -> Load:
    finished, requests = _DONE.search(said), _REQUESTS.search(said)
    status = _STATUS.search(said)
    if not finished or not requests or not status:
        raise LoadError(said)
    if int(requests[3]):
        raise LoadError(said)
    lines = (line.split("\t") for line in log.splitlines())
    seconds = float(finished[1]) * _SECONDS_OF[finished[2]]
    return Load(count, seconds, tuple(int(line[2]) for line in lines), int(status[1]))
