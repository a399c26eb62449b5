"""A primary that Sentinels know: found by asking them, and again whenever there is doubt.

Replication is asynchronous, so a fail-over can lose writes that were acknowledged: a changed
primary is counted and logged. A demoted primary is not used, not even for reading: a Sentinel that
demotes it closes its connections, and every new connection asks for the role first.
"""

import asyncio
import logging
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from extauthz.store.base import StoreError, StoreUnavailableError
from extauthz.store.connections import Connections, Retired
from extauthz.store.topology import WRONG_SERVER, Route
from extauthz.store.url import Address, StoreUrl

log = logging.getLogger(__name__)


class _Told(NamedTuple):
    """What one Sentinel says; of several the one of the newest fail-over is right."""

    epoch: int
    address: Address


class SentinelTopology:
    """All orgs on one primary, which may change."""

    def __init__(self, url: StoreUrl, *, command_timeout_s: float, size: int) -> None:
        self._url, self._timeout_s, self._size = url, command_timeout_s, size
        # A Sentinel that is away must not use up the deadline of the command that waits for it.
        self._sentinels = [
            Connections(url.of_sentinel(seed), command_timeout_s=command_timeout_s / 4, size=1)
            for seed in url.seeds
        ]
        self._primary: Connections | None = None
        self._address: Address | None = None
        self._retired = Retired()
        self._in_doubt = True
        self._finding = asyncio.Lock()
        self.primary_changes = 0

    @property
    def place(self) -> str:
        """See `Topology`."""
        found = f" ({self._address})" if self._address else ""
        return f"{self._url.primary_name}{found} of the Sentinels {self._seeds()}"

    async def route(self, org: str) -> Route:  # noqa: ARG002 the same for every org
        """See `Topology`."""
        if self._primary is None or self._in_doubt:
            async with self._finding:  # who waited here for another's search, need not search
                if self._primary is None or self._in_doubt:
                    return Route(await self._find())
        return Route(self._primary)

    def known_route(self, org: str) -> Route | None:  # noqa: ARG002
        """See `Topology`."""
        return None if self._primary is None or self._in_doubt else Route(self._primary)

    async def next_route(self, org: str, failed: Route, error: Exception) -> Route | None:
        """See `Topology`."""
        if not isinstance(error, WRONG_SERVER):
            return None
        self.distrust(failed.connections)
        route = await self.route(org)
        return None if route == failed else route

    def distrust(self, connections: Connections) -> None:
        """See `Topology`."""
        if connections is self._primary:
            self._in_doubt = True

    async def primaries(self) -> list[Connections]:
        """See `Topology`."""
        async with self._finding:
            return [await self._find()]

    async def close(self) -> None:
        """See `Topology`."""
        for connections in (*self._sentinels, self._primary):
            if connections is not None:
                await connections.close()
        await self._retired.close()

    async def _find(self) -> Connections:
        answers = await asyncio.gather(*(self._ask(sentinel) for sentinel in self._sentinels))
        told = [answer for answer in answers if isinstance(answer, _Told)]
        if not told:
            reasons = "; ".join(str(answer) for answer in answers)
            raise StoreUnavailableError(f"no Sentinel told where the primary is: {reasons}")
        address = max(told).address
        if self._primary is None or address != self._address:
            self._use(address)
        self._in_doubt = False
        assert self._primary is not None
        return self._primary

    async def _ask(self, sentinel: Connections) -> _Told | StoreError:
        name = self._url.primary_name
        try:
            # The address changes as soon as a replica is promoted; the other reply has the epoch.
            address, details = await sentinel.read(
                ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name), ("SENTINEL", "MASTER", name)
            )
        except StoreError as error:
            return error
        return _told(sentinel.place, name, address, details)

    def _use(self, address: Address) -> None:
        before, was = self._primary, self._address
        self._primary = Connections(
            self._url.of_server(address),
            command_timeout_s=self._timeout_s,
            size=self._size,
            primary_only=True,
        )
        self._address = address
        if before is not None:
            self._retired.add(before)
            self.primary_changes += 1
            log.warning(
                "the primary %s changed from %s to %s: writes that the old one had acknowledged "
                "and not replicated are lost; what their calls cost is recovered as they settle",
                self._url.primary_name,
                was,
                address,
            )

    def _seeds(self) -> str:
        return ", ".join(map(str, self._url.seeds))


def _told(place: str, name: str, address: Any, details: Any) -> _Told | StoreError:
    for reply in (address, details):
        if isinstance(reply, ResponseError):
            return StoreUnavailableError(f"the Sentinel at {place}, asked for {name!r}: {reply}")
    if address is None:
        return StoreUnavailableError(f"the Sentinel at {place} knows no primary {name!r}")
    facts = dict(zip(details[::2], details[1::2], strict=True))
    return _Told(int(facts["config-epoch"]), Address(address[0], int(address[1])))
