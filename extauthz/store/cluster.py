"""The nodes of a Cluster: which of them keeps an org is told by its slot, and by their refusals.

A node that is asked for a slot of another refuses before it executes anything (MOVED, ASK), so
asking again elsewhere counts nothing twice. While a slot is moved key by key, a command whose keys
are not all on one node is refused by both (TRYAGAIN) until they are.
"""

import asyncio
import logging
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ResponseError, TryAgainError

from extauthz.store.base import StoreError, StoreUnavailableError, org_prefix
from extauthz.store.connections import Connections, Retired
from extauthz.store.failures import unavailable
from extauthz.store.topology import WRONG_SERVER, Route
from extauthz.store.url import Address, StoreUrl

log = logging.getLogger(__name__)


class ClusterTopology:
    """Each org on the node that has its slot."""

    def __init__(self, url: StoreUrl, *, command_timeout_s: float, size: int) -> None:
        self._url, self._timeout_s, self._size = url, command_timeout_s, size
        self._nodes: dict[Address, Connections] = {}
        self._slots: dict[int, Address] = {}
        self._in_doubt = True
        self._doubted: set[Connections] = set()
        self._retired = Retired()
        self._mapping = asyncio.Lock()
        self.primary_changes = 0

    @property
    def place(self) -> str:
        """See `Topology`."""
        return f"the Cluster of {', '.join(map(str, self._url.seeds))}"

    async def route(self, org: str) -> Route:
        """See `Topology`."""
        if self._in_doubt:
            async with self._mapping:  # who waited here for another's map, need not draw one
                if self._in_doubt:
                    await self._map()
        slot = _slot_of(org)
        if slot not in self._slots:
            self._in_doubt = True
            raise StoreUnavailableError(
                f"the store at {self.place} has no node for slot {slot}, that of the org {org!r}; "
                "see CLUSTER SHARDS"
            )
        return Route(self._node(self._slots[slot]))

    def known_route(self, org: str) -> Route | None:
        """See `Topology`."""
        address = None if self._in_doubt else self._slots.get(_slot_of(org))
        node = None if address is None else self._nodes.get(address)
        return None if node is None else Route(node)

    async def next_route(self, org: str, failed: Route, error: Exception) -> Route | None:
        """See `Topology`."""
        match error:
            case MovedError():
                await self._moved(error.slot_id, _named_by(failed, error))
                return await self.route(org)
            case AskError():
                return Route(self._node(_named_by(failed, error)), asking=True)
            case TryAgainError():
                return await self.route(org)
        if not isinstance(error, WRONG_SERVER):
            return None
        self.distrust(failed.connections)
        route = await self.route(org)
        return None if route == failed else route

    def distrust(self, connections: Connections) -> None:
        """See `Topology`."""
        self._in_doubt = True
        self._doubted.add(connections)

    async def primaries(self) -> list[Connections]:
        """See `Topology`. Any slot may be moved to any of them."""
        async with self._mapping:
            await self._map()
        return [self._node(address) for address in sorted(set(self._slots.values()))]

    async def close(self) -> None:
        """See `Topology`."""
        for node in self._nodes.values():
            await node.close()
        await self._retired.close()

    async def _moved(self, slot: int, address: Address) -> None:
        """Ask the new owner for its map; what it does not know yet, the refusal told."""
        async with self._mapping:
            if self._slots.get(slot) == address:
                return
            try:
                await self._map(address)
            except StoreError as error:
                log.debug("no node told the map of the Cluster: %s", error)
            self._slots[slot] = address

    async def _map(self, *first: Address) -> None:
        reasons = []
        for address in self._candidates(*first):
            node = self._node(address)
            try:
                # One that is away must not use up the deadline of the command that waits for this.
                (reply,) = await node.read(("CLUSTER", "SLOTS"), timeout_s=self._timeout_s / 4)
                if isinstance(reply, ResponseError):
                    raise unavailable(node.place, reply)
            except StoreError as error:
                reasons.append(str(error))
                continue
            self._use(dict(_owners(node.host, reply)))
            return
        raise StoreUnavailableError(f"no node told the map of the Cluster: {'; '.join(reasons)}")

    def _candidates(self, *first: Address) -> list[Address]:
        """Whom to ask for the map; those that were silent or lost come last."""
        known = dict.fromkeys([*first, *self._nodes, *self._url.seeds])
        return sorted(known, key=lambda address: self._nodes.get(address) in self._doubted)

    def _use(self, slots: dict[int, Address]) -> None:
        before, now = set(self._slots.values()), set(slots.values())
        # A slot that was moved by hand has lost nothing: both its nodes are primaries.
        lost = {
            (owner, slots[slot])
            for slot, owner in self._slots.items()
            if owner not in now and slot in slots and slots[slot] not in before
        }
        for was, address in sorted(lost):
            self.primary_changes += 1
            log.warning(
                "the primary %s of the Cluster was replaced by %s: writes that the old one had "
                "acknowledged and not replicated are lost; what their calls cost is recovered as "
                "they settle",
                was,
                address,
            )
        self._slots, self._in_doubt = slots, False
        self._doubted.clear()
        for address in set(self._nodes) - now - set(self._url.seeds):
            self._retired.add(self._nodes.pop(address))

    def _node(self, address: Address) -> Connections:
        if address not in self._nodes:
            self._nodes[address] = Connections(
                self._url.of_server(address), command_timeout_s=self._timeout_s, size=self._size
            )
        return self._nodes[address]


@lru_cache
def _slot_of(org: str) -> int:
    return int(key_slot(org_prefix(org).encode()))


def _named_by(failed: Route, error: AskError) -> Address:
    """The node that a refusal names; no host in it means the one that answered."""
    return Address(error.host.strip("[]") or failed.connections.host, error.port)


def _owners(asked_host: str, reply: Any) -> Iterator[tuple[int, Address]]:
    """Read CLUSTER SLOTS: of each range its first and last slot, its primary, its replicas."""
    for first, last, (host, port, *_), *_ in reply:
        address = Address(asked_host if host in (None, "", "?") else host, port)
        for slot in range(first, last + 1):
            yield slot, address
