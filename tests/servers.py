"""Real store servers for tests: each on a unix socket in a short directory of its own."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import redis

from extauthz.store.embedded import valkey_binary, valkey_command

START_SECONDS_MAX = 60


def debian_redis() -> str | None:
    """The `redis-server` of this machine, if it has one."""
    return shutil.which("redis-server")


def until(is_true: Callable[[], bool], seconds: float = 60) -> None:
    """Poll for a condition; the limit is for what never comes, not for what is slow."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


class Server:
    """A store process that can be frozen, killed and started again on the same data."""

    def __init__(self, binary: str | None = None, *extra: str) -> None:
        # pytest's tmp_path is too long for a unix socket.
        self.dir = Path(tempfile.mkdtemp(prefix="xa-", dir="/tmp"))
        self.socket = self.dir / "s"
        self.url = f"unix://{self.socket}"
        command = valkey_command(self.dir, self.socket)
        self._command = [binary or str(valkey_binary()), *command[1:], *extra]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)

    @property
    def log(self) -> str:
        return (self.dir / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._answers():
            if self._running().poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the store did not start:\n{self.log}")
            time.sleep(0.01)

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        with (self.dir / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def client(self) -> "redis.Redis":
        """A plain client, to look at the data and to set the server up."""
        return redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)

    def freeze(self) -> None:
        """Stop it from running; connections stay open and take bytes."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a chance to clean up, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "start it first"
        return self._process

    def _answers(self) -> bool:
        client = self.client()
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
        finally:
            client.close()
