"""Several store servers that belong together: a Cluster, a primary with its Sentinels.

They listen on TCP, on ports of this machine's loopback that were free a moment before; whoever
loses a port to another process on the way starts again on other ports.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Self

import redis
from nodes import OPEN, Access, Node, free_port
from redis.crc import key_slot
from servers import until

from extauthz.store.base import org_prefix

SLOTS = 16384
DOWN_AFTER_MS = 1000
_PRIMARY_NAME = "ledger"


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
    """Three primaries, each with a third of the slots; the first has as many replicas as asked."""

    def __init__(self, *, replicas: int = 0, access: Access = OPEN) -> None:
        super().__init__()
        self._replica_count, self._access = replicas, access

    @property
    def url(self) -> str:
        seeds = ",".join(node.place for node in self.nodes[:2])
        return f"{self._access.scheme}+cluster://{self._access.user}{seeds}"

    def start(self) -> None:
        # Without replicas, however late one answers, it is not to be taken for dead: the others
        # would all refuse.
        node_timeout_ms = 3000 if self._replica_count else 60_000
        make = partial(_cluster_node, self._access, node_timeout_ms)
        first, *others = [self._started(make) for _ in range(3)]
        for n, node in enumerate(self.nodes):
            bounds = SLOTS * n // 3, SLOTS * (n + 1) // 3 - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", *bounds)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        self.replicas = [self._started(make) for _ in range(self._replica_count)]
        for node in (*others, *self.replicas):
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        until(lambda: all(_knows_all(node, len(self.nodes)) for node in self.nodes))
        for replica in self.replicas:
            replica.ask("CLUSTER", "REPLICATE", first.ask("CLUSTER", "MYID"))
        until(lambda: all(_is_linked(replica) for replica in self.replicas))

    def owner(self, slot: int) -> Node:
        """The node with a slot, as one of those that run tells."""
        running = [node for node in self.nodes if node.is_running]
        ids = {node.ask("CLUSTER", "MYID"): node for node in running}
        return ids[_owner_ids(running[-1])[slot]]

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

    def __init__(
        self, *primary_settings: str, access: Access = OPEN, sentinel_password: str = ""
    ) -> None:
        super().__init__()
        self._primary_settings, self._access = primary_settings, access
        self._own_access = Access(sentinel_password, access.tls)

    @property
    def url(self) -> str:
        seeds = ",".join(node.place for node in self.sentinels)
        url = f"{self._access.scheme}+sentinel://{self._access.user}{seeds}/{_PRIMARY_NAME}"
        return f"{url}?sentinel_password={word}" if (word := self._own_access.password) else url

    def start(self) -> None:
        self.primary = self._started(
            lambda: Node("primary", *self._primary_settings, access=self._access)
        )
        follows = f"127.0.0.1 {self.primary.port}"
        self.replica = self._started(
            lambda: Node("replica", "--replicaof", follows, access=self._access)
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

    def part(self) -> None:
        """From here on the replica hears nothing of the primary, and the Sentinels do not mind."""
        self.replica.ask("CONFIG", "SET", "masterauth", "not-the-password")
        self.primary.ask("CLIENT", "KILL", "TYPE", "replica")
        until(lambda: "master_link_status:down" in _replication(self.replica))
        # They promote no replica that has heard nothing for ten times as long as this.
        for sentinel in self.sentinels:
            patience = ("down-after-milliseconds", str(6 * DOWN_AFTER_MS))
            sentinel.ask("SENTINEL", "SET", _PRIMARY_NAME, *patience)

    def has_failed_over(self) -> bool:
        """Ask for a fail-over until there has been one.

        It is refused until the replica has been heard of for a while, and given up where that is
        not promoted in time.
        """
        first = self.sentinels[0]
        address = first.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", _PRIMARY_NAME)
        if isinstance(address, list | tuple) and int(address[1]) == self.replica.port:
            return True
        try:
            first.ask("SENTINEL", "FAILOVER", _PRIMARY_NAME)
        except redis.ResponseError as refusal:
            if not any(word in str(refusal) for word in ("NOGOODSLAVE", "INPROG")):
                raise
        return False

    def named(self) -> set[int]:
        """The ports that the Sentinels name as the primary's."""
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", _PRIMARY_NAME)
        replies = [sentinel.ask(*question) for sentinel in self.sentinels]
        return {int(reply[1]) for reply in replies if isinstance(reply, list | tuple)}

    def _sentinel(self) -> Node:
        access = self._access
        node_dir = Path(tempfile.mkdtemp(prefix="xa-", dir="/tmp"))
        config = node_dir / "sentinel.conf"
        config.write_text(
            f"sentinel monitor {_PRIMARY_NAME} 127.0.0.1 {self.primary.port} 2\n"
            f"sentinel down-after-milliseconds {_PRIMARY_NAME} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {_PRIMARY_NAME} 3000\n"
            + (f"sentinel auth-pass {_PRIMARY_NAME} {word}\n" if (word := access.password) else "")
        )
        command = [access.binary, str(config), "--sentinel"]
        node = Node("sentinel", "--dir", str(node_dir), command=command, access=self._own_access)
        shutil.rmtree(node.dir)
        node.dir = node_dir
        return node

    def _sees_all(self, sentinel: Node) -> bool:
        with contextlib.closing(sentinel.client()) as client:
            seen = client.sentinel_master(_PRIMARY_NAME)
        return bool(seen["num-slaves"] == 1 and seen["num-other-sentinels"] == 2)


def _cluster_node(access: Access, node_timeout_ms: int) -> Node:
    bus_port = free_port()
    settings = {
        "enabled": "yes",
        "node-timeout": str(node_timeout_ms),
        "port": str(bus_port),
    }
    words = (word for n, value in settings.items() for word in (f"--cluster-{n}", value))
    node = Node("node", *words, access=access)
    node.bus_port = bus_port
    return node


def _knows_all(node: Node, count: int) -> bool:
    # A node that has not met the others calls its own third the whole, for a moment.
    info = str(node.ask("CLUSTER", "INFO"))
    all_slots = "cluster_state:ok" in info and f"cluster_slots_ok:{SLOTS}" in info
    return all_slots and f"cluster_known_nodes:{count}\r" in info


def _is_linked(replica: Node) -> bool:
    return "master_link_status:up" in _replication(replica)


def _replication(node: Node) -> str:
    with contextlib.closing(node.client()) as client:
        return "\n".join(f"{name}:{value}" for name, value in client.info("replication").items())


def _owner_ids(node: Node) -> dict[int, str]:
    """Which node has each slot, by its id, as one node sees it."""
    ranges = node.ask("CLUSTER", "SLOTS")
    assert isinstance(ranges, list)
    return {n: owner[2] for first, last, owner, *_ in ranges for n in range(first, last + 1)}
