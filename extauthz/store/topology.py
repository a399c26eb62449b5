"""Which server keeps an org's keys: all of them share one hash tag, so it is always one."""

from dataclasses import dataclass
from typing import Protocol

from redis.exceptions import ClusterDownError, ReadOnlyError

from extauthz.store.connections import Connections, NotReachedError

WRONG_SERVER = (NotReachedError, ReadOnlyError, ClusterDownError)
"""Nothing was executed, and it may be that another server keeps the org by now."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where to ask; `asking` a node of a Cluster that is just being given the org's slot."""

    connections: Connections
    asking: bool = False


class Topology(Protocol):
    """Knows the servers and keeps the connections to them.

    Its methods run inside the deadline of the command that they serve, and raise
    `StoreUnavailableError` if nobody knows where an org is.
    """

    @property
    def place(self) -> str:
        """What `store.url` names, for messages; never a password."""

    @property
    def primary_changes(self) -> int:
        """How often another server was found to be a primary: writes may have been lost."""

    async def route(self, org: str) -> Route:
        """Where an org is, as far as is known; asked anew if there is doubt."""

    def known_route(self, org: str) -> Route | None:
        """As `route`, where nobody has to be asked for it."""

    async def next_route(self, org: str, failed: Route, error: Exception) -> Route | None:
        """Where to ask again after an error; None if it stands.

        Only where the error proves that the command was not executed is there another route.
        """

    def distrust(self, connections: Connections) -> None:
        """A server was silent or lost: ask anew where its orgs are before the next command."""

    async def primaries(self) -> list[Connections]:
        """All servers that keep an org now, or could be given one; asked anew."""

    async def close(self) -> None:
        """Close all connections."""


class Standalone:
    """One server, which `store.url` names."""

    def __init__(self, connections: Connections) -> None:
        self._route = Route(connections)
        self.place = connections.place
        self.primary_changes = 0

    async def route(self, org: str) -> Route:  # noqa: ARG002 the same for every org
        """See `Topology`."""
        return self._route

    def known_route(self, org: str) -> Route | None:  # noqa: ARG002
        """See `Topology`."""
        return self._route

    async def next_route(self, org: str, failed: Route, error: Exception) -> Route | None:  # noqa: ARG002
        """See `Topology`."""
        return None

    def distrust(self, connections: Connections) -> None:
        """See `Topology`. There is no other."""

    async def primaries(self) -> list[Connections]:
        """See `Topology`."""
        return [self._route.connections]

    async def close(self) -> None:
        """See `Topology`."""
        await self._route.connections.close()
