"""One store server on TCP, as open or as closed as a test wants it; `clusters.py` groups them."""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from certificates import Certificates
from servers import START_SECONDS_MAX, debian_redis

from extauthz.store.embedded import valkey_binary, valkey_command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass(frozen=True)
class Access:
    """What all nodes of a group ask for: a password, TLS, or neither.

    With TLS they are of the operating system's Redis, as the embedded Valkey is built without.
    """

    password: str = ""
    tls: Certificates | None = None

    @property
    def binary(self) -> str:
        return debian_redis() or "redis-server" if self.tls else str(valkey_binary())

    def settings(self, port: int) -> dict[str, str]:
        """Where a node listens, and what it asks of others and gives to them."""
        settings = {"port": str(port)}
        if self.tls:
            settings = {"port": "0", "tls-port": str(port), **self.tls.server_settings}
            settings |= {"tls-replication": "yes", "tls-cluster": "yes"}
        if self.password:
            settings |= {"requirepass": self.password, "masterauth": self.password}
        return settings

    def client(self, port: int) -> "redis.Redis":
        """A plain client, to look at the data and to set servers up."""
        given: dict[str, Any] = {"password": self.password or None}
        if self.tls:
            given |= {"ssl": True, "ssl_ca_certs": str(self.tls.ca), "ssl_check_hostname": False}
        return redis.Redis(host="127.0.0.1", port=port, decode_responses=True, **given)

    @property
    def scheme(self) -> str:
        return "rediss" if self.tls else "redis"

    @property
    def user(self) -> str:
        """As it stands in a URL before the hosts."""
        return f":{self.password}@" if self.password else ""


OPEN = Access()


class Node:
    """One process on TCP, with the settings of the embedded store and `extra` ones."""

    def __init__(
        self, name: str, *extra: str, command: list[str] | None = None, access: Access = OPEN
    ) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="xa-", dir="/tmp"))
        self.port = free_port()
        self.bus_port = 0
        self._name, self._access = name, access
        command = command or [access.binary, *valkey_command(self.dir, self.dir / "s")[1:]]
        settings = {**access.settings(self.port), "bind": "127.0.0.1"}
        words = [word for n, value in settings.items() for word in (f"--{n}", value)]
        self._command = [*command, *words, *extra]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.dir / "log").read_text(errors="replace")

    def start(self) -> None:
        with (self.dir / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._name} did not start:\n{self.log}")
            time.sleep(0.01)

    def client(self) -> "redis.Redis":
        return self._access.client(self.port)

    def ask(self, *words: object) -> object:
        """One command on a connection of its own; its reply as it comes."""
        with contextlib.closing(self.client()) as client:
            return client.execute_command(*words)

    def kill(self) -> None:
        """End it without a chance to clean up, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def freeze(self) -> None:
        assert self._process is not None, "start it first"
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None, "start it first"
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            return self.ask("PING") is not None
        except redis.ConnectionError:
            return False
