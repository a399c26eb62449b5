"""A store server that is measured, and what it says of itself."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from servers import Server

from bench.processes import cpu_seconds

if TYPE_CHECKING:
    import redis


class Watched:
    """A store server, and what it says of itself."""

    def __init__(self, client: "redis.Redis") -> None:
        self.client = client
        self._pid = int(self._info("server")["process_id"])

    @property
    def cpu_seconds(self) -> float:
        """What its process has used."""
        return cpu_seconds(self._pid)

    @property
    def script_seconds(self) -> float:
        """The time that it has spent in scripts, without the disk and the network."""
        return self._of_command("evalsha", "usec") / 1e6

    @property
    def memory_bytes(self) -> int:
        """What its data has allocated: buffers of its clients and its log come and go."""
        memory = self._info("memory")
        passing = ("mem_clients_normal", "mem_aof_buffer")
        return int(memory["used_memory"]) - sum(int(memory[name]) for name in passing)

    @property
    def client_bytes(self) -> int:
        """What it keeps for its clients."""
        return int(self._info("memory")["mem_clients_normal"])

    @property
    def connections(self) -> int:
        """Of all clients, without this one."""
        return int(self._info("clients")["connected_clients"]) - 1

    @property
    def log_bytes(self) -> int:
        """Its append-only file."""
        return int(self._info("persistence")["aof_current_size"])

    def commands(self, name: str) -> int:
        """How often a command was run, by clients and by scripts."""
        return self._of_command(name, "calls")

    def _of_command(self, name: str, what: str) -> int:
        return int(self._info("commandstats").get(f"cmdstat_{name}", {}).get(what, 0))

    def _info(self, section: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.info(section)
        return found


@contextlib.contextmanager
def a_store() -> Iterator[tuple[str, Watched]]:
    """The embedded store, as `extauthz up` runs it."""
    with Server() as server, contextlib.closing(server.client()) as client:
        yield server.url, Watched(client)
