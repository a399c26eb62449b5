"""Several store servers that belong together: a Cluster of three, a primary with its Sentinels.

They listen on TCP, on ports of this machine's loopback that were free a moment before; whoever
loses a port to another process on the way starts again on other ports.
"""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import redis
from redis.crc import key_slot
from servers import START_SECONDS_MAX, until

from extauthz.store.base import org_prefix
from extauthz.store.embedded import valkey_binary, valkey_command

SLOTS = 16384
DOWN_AFTER_MS = 1000
_PRIMARY_NAME = "ledger"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Node:
    """One process on TCP, with the settings of the embedded store and `extra` ones."""

    def __init__(self, name: str, *extra: str, command: list[str] | None = None) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="xa-", dir="/tmp"))
        self.port = free_port()
        self.bus_port = 0
        self._name = name
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", *extra]
        self._command = command or valkey_command(self.dir, self.dir / "s")
        self._command = [*self._command, *settings]
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
        return redis.Redis(port=self.port, decode_responses=True)

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


class _Group:
    """Nodes that are started together and removed together."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for node in self.nodes:
            node.remove()

    def start(self) -> None:
        raise NotImplementedError

    def _started(self, make: Callable[[], Node]) -> Node:
        for _ in range(5):
            node = make()
            self.nodes.append(node)
            try:
                node.start()
            except RuntimeError:
                node.remove()
                self.nodes.remove(node)
                continue
            return node
        raise RuntimeError("five times in a row another process took the port")


class Cluster(_Group):
    """Three primaries, each with a third of the slots; no replicas."""

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(node.place for node in self.nodes[:2])}"

    def start(self) -> None:
        first, *others = [self._started(_cluster_node) for _ in range(3)]
        for n, node in enumerate(self.nodes):
            bounds = SLOTS * n // 3, SLOTS * (n + 1) // 3 - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", *bounds)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for node in others:
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        until(lambda: all(_knows_all(node) for node in self.nodes))

    def owner(self, slot: int) -> Node:
        """The node with a slot."""
        ids = {node.ask("CLUSTER", "MYID"): node for node in self.nodes}
        return ids[_owner_ids(self.nodes[0])[slot]]

    @contextlib.contextmanager
    def moving(self, slot: int, source: Node, target: Node) -> Iterator[None]:
        """Give a slot to another node as redis-cli does; the block runs half-way."""
        source_id, target_id = source.ask("CLUSTER", "MYID"), target.ask("CLUSTER", "MYID")
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        yield
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 20):
            assert isinstance(keys, list)
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        until(lambda: all(_owner_ids(node)[slot] == target_id for node in self.nodes))

    def move(self, slot: int, target: Node) -> None:
        with self.moving(slot, self.owner(slot), target):
            pass


def slot_of(org: str) -> int:
    return key_slot(org_prefix(org).encode())


class Sentinels(_Group):
    """A primary, a replica of it, and three Sentinels that fail over within a second or two."""

    def __init__(self, *primary_settings: str) -> None:
        super().__init__()
        self._primary_settings = primary_settings

    @property
    def url(self) -> str:
        seeds = ",".join(node.place for node in self.sentinels)
        return f"redis+sentinel://{seeds}/{_PRIMARY_NAME}"

    def start(self) -> None:
        self.primary = self._started(lambda: Node("primary", *self._primary_settings))
        self.replica = self._started(
            lambda: Node("replica", "--replicaof", f"127.0.0.1 {self.primary.port}")
        )
        self.sentinels = [self._started(self._sentinel) for _ in range(3)]
        until(self.is_in_sync)
        for sentinel in self.sentinels:
            # Unhurried, each asks the servers every 10 s and greets the others every 2 s; and takes
            # two seconds without the processor for a clock that jumped, and pauses for 30 s.
            hurried = ("INFO-PERIOD", 200, "PUBLISH-PERIOD", 200, "TILT-TRIGGER", 3_600_000)
            sentinel.ask("SENTINEL", "DEBUG", *hurried)
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: self._sees_all(sentinel))

    def is_in_sync(self) -> bool:
        """Whether the replica has all that the primary has."""
        with contextlib.closing(self.primary.client()) as client:
            client.set("in-sync", 1)  # WAIT is about what its own connection wrote
            return client.wait(1, 100) == 1

    def has_failed_over(self) -> bool:
        """Ask for a fail-over; it is refused until the replica has been heard of for a while."""
        try:
            return bool(self.sentinels[0].ask("SENTINEL", "FAILOVER", _PRIMARY_NAME))
        except redis.ResponseError as refusal:
            if "NOGOODSLAVE" in str(refusal):
                return False
            raise

    def named(self) -> set[int]:
        """The ports that the Sentinels name as the primary's."""
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", _PRIMARY_NAME)
        replies = [sentinel.ask(*question) for sentinel in self.sentinels]
        return {int(reply[1]) for reply in replies if isinstance(reply, list | tuple)}

    def _sentinel(self) -> Node:
        node_dir = Path(tempfile.mkdtemp(prefix="xa-", dir="/tmp"))
        config = node_dir / "sentinel.conf"
        config.write_text(
            f"sentinel monitor {_PRIMARY_NAME} 127.0.0.1 {self.primary.port} 2\n"
            f"sentinel down-after-milliseconds {_PRIMARY_NAME} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {_PRIMARY_NAME} 3000\n"
        )
        command = [str(valkey_binary()), str(config), "--sentinel"]
        node = Node("sentinel", "--dir", str(node_dir), command=command)
        shutil.rmtree(node.dir)
        node.dir = node_dir
        return node

    def _sees_all(self, sentinel: Node) -> bool:
        with contextlib.closing(sentinel.client()) as client:
            seen = client.sentinel_master(_PRIMARY_NAME)
        return bool(seen["num-slaves"] == 1 and seen["num-other-sentinels"] == 2)


def _cluster_node() -> Node:
    bus_port = free_port()
    # However late one answers, it is not to be taken for dead: the others would all refuse.
    settings = {"enabled": "yes", "node-timeout": "60000", "port": str(bus_port)}
    node = Node("node", *(word for n, v in settings.items() for word in (f"--cluster-{n}", v)))
    node.bus_port = bus_port
    return node


def _knows_all(node: Node) -> bool:
    # A node that has not met the others calls its own third the whole, for a moment.
    info = str(node.ask("CLUSTER", "INFO"))
    return "cluster_state:ok" in info and f"cluster_slots_ok:{SLOTS}" in info


def _owner_ids(node: Node) -> dict[int, str]:
    """Which node has each slot, by its id, as one node sees it."""
    ranges = node.ask("CLUSTER", "SLOTS")
    assert isinstance(ranges, list)
    return {n: owner[2] for first, last, owner, *_ in ranges for n in range(first, last + 1)}
