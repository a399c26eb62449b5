"""Connections to one server on which no reply can reach another caller.

redis-py leaves a cancelled command's reply in the connection for the next caller. So here a
connection goes back to the idle ones only after an exchange that ended cleanly.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from extauthz.store.base import StoreError, StoreUnavailableError
from extauthz.store.conversation import refuse_replica, run_reads
from extauthz.store.failures import unavailable
from extauthz.store.lane import Lane
from extauthz.store.script import Command

_T = TypeVar("_T")


class NotReachedError(StoreUnavailableError):
    """There was no connection to be had: nothing was sent, so nothing was executed."""


class Connections:
    """At most `size` connections to one server, the last used goes out first; and a lane."""

    def __init__(
        self, url: str, *, command_timeout_s: float, size: int, primary_only: bool = False
    ) -> None:
        try:
            # RESP2, because a server pushes nothing there: what arrives unasked is an error.
            self._factory = ConnectionPool.from_url(
                url,
                protocol=2,
                decode_responses=True,
                socket_timeout=None,  # one deadline for the whole exchange is set by its caller
                socket_connect_timeout=command_timeout_s,
                retry=Retry(NoBackoff(), 0),
                **({"redis_connect_func": refuse_replica} if primary_only else {}),
            )
        except ValueError as error:
            raise StoreError(f"store.url: {error}") from error
        self._timeout_s = command_timeout_s
        self._free = asyncio.Semaphore(size)
        self._idle: list[AbstractConnection] = []
        self._lane: Lane | None = None
        self._left: list[Lane] = []  # those before it on which somebody still waits
        self._opening: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def place(self) -> str:
        """Where the server is, for messages; never a password."""
        kwargs = self._factory.connection_kwargs
        if "path" in kwargs:
            return f"unix://{kwargs['path']}"
        return f"{self.host}:{kwargs.get('port', 6379)}"

    @property
    def host(self) -> str:
        """The host in its URL."""
        return str(self._factory.connection_kwargs.get("host", "localhost"))

    @property
    def lane(self) -> Lane | None:
        """The connection that all share; None: there is none that takes a command now.

        One that was lost is opened anew by then. Why that fails, whoever asks on a connection of
        his own is told.
        """
        lane = self._lane
        if lane is not None and lane.has_room:
            return lane
        if (lane is None or lane.is_over) and self._opening is None and not self._is_closed:
            self._opening = asyncio.create_task(self._open_lane())
        return None

    async def use(self, talk: Callable[[AbstractConnection], Awaitable[_T]]) -> _T:
        """Lend a connection out. If this is cancelled, the connection is closed.

        Raises:
            NotReachedError: nothing was sent.
            RedisError, OSError: it was lost on the way.
        """
        async with self._free:
            connection = self._idle.pop() if self._idle else self._new()
            try:
                await self._connect(connection)
                result = await talk(connection)
            except BaseException:
                # Whatever it was, a reply may still be on its way here: nobody may read it.
                await connection.disconnect(nowait=True)
                raise
            if self._is_closed:
                await connection.disconnect(nowait=True)
            else:
                self._idle.append(connection)
            return result

    async def read(self, *commands: Command, timeout_s: float | None = None) -> list[Any]:
        """Run plain commands in one round trip; an error reply stands in its place in the list."""
        answers: dict[int, Any] = {}
        numbered = dict(enumerate(commands))
        seconds = self._timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(seconds):
                await self.use(
                    lambda c: run_reads(
                        c, self.place, asking=False, commands=numbered, answers=answers
                    )
                )
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"the store at {self.place} did not answer within {seconds:g} s"
            ) from error
        except (RedisError, OSError) as error:
            raise unavailable(self.place, error) from error
        return [answers[at] for at in numbered]

    async def close(self) -> None:
        """Close what is idle, and what is lent out as soon as it comes back."""
        self._is_closed = True
        if self._opening is not None:
            await self._opening
        for lane in (*self._left, self._lane):
            if lane is not None:
                await lane.close()
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    async def _open_lane(self) -> None:
        connection = self._new()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._connect(connection)
        except (TimeoutError, NotReachedError):
            await connection.disconnect(nowait=True)
        else:
            lanes = (*self._left, *([self._lane] if self._lane else []))
            self._left = [lane for lane in lanes if not lane.is_lost]
            self._lane = Lane(connection, self.place, self._timeout_s)
        finally:
            self._opening = None

    async def _connect(self, connection: AbstractConnection) -> None:
        try:
            await self._factory.ensure_connection(connection)
        except (RedisError, OSError) as error:
            raise NotReachedError(str(unavailable(self.place, error))) from error

    def _new(self) -> AbstractConnection:
        connection: AbstractConnection = self._factory.make_connection()  # type: ignore[no-untyped-call]
        return connection


class Retired:
    """Connections to servers that are asked no more: closed once their last answers have come.

    Nobody waits for that before the end: a primary that is frozen answers no sooner for it, and who
    has found another one in its place would have to tell nobody until then.
    """

    def __init__(self) -> None:
        self._closing: set[asyncio.Task[None]] = set()

    def add(self, connections: Connections) -> None:
        """Close these when that can be done."""
        task = asyncio.create_task(connections.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Wait until all are closed."""
        while self._closing:
            await asyncio.wait(self._closing)
