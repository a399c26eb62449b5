"""Connections to the store on which no reply can reach another caller.

redis-py leaves a cancelled command's reply in the connection for the next caller. So here every
exchange runs in a task of its own that nobody cancels, every reply is checked against what was
asked, and a connection goes back to the idle ones only after an exchange that ended cleanly.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from extauthz.store.base import StoreError, StoreUnavailableError
from extauthz.store.failures import unavailable
from extauthz.store.script import Call

_T = TypeVar("_T")
Answer = list[str] | StoreError

_NOT_BUILT = {
    "redis+sentinel": "Sentinel",
    "rediss+sentinel": "Sentinel",
    "redis+cluster": "Cluster",
    "rediss+cluster": "Cluster",
}


_URL_OPTIONS = frozenset({"db", "password"})


class Connections:
    """At most `size` connections to one server; the most recently used goes out first."""

    def __init__(self, url: str, *, command_timeout_s: float, size: int) -> None:
        _check_url(url)
        try:
            # RESP2, because a server pushes nothing there: what arrives unasked is an error.
            self._factory = ConnectionPool.from_url(
                url,
                protocol=2,
                decode_responses=True,
                socket_timeout=None,  # one deadline for the whole exchange is set in _use
                socket_connect_timeout=command_timeout_s,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise StoreError(f"store.url: {error}") from error
        self._timeout_s = command_timeout_s
        self._free = asyncio.Semaphore(size)
        self._idle: list[AbstractConnection] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    @property
    def place(self) -> str:
        """Where the store is, for messages; never a password."""
        kwargs = self._factory.connection_kwargs
        if "path" in kwargs:
            return f"unix://{kwargs['path']}"
        return f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"

    async def run(self, calls: Sequence[Call]) -> list[Answer]:
        """Run scripts in one round trip: for each its reply, or why there is none to be trusted."""
        answers: list[Answer | None] = [None] * len(calls)

        async def talk(connection: AbstractConnection) -> None:
            await self._run_on(connection, calls, answers)

        try:
            await self._in_own_task(lambda: self._use(talk))
        except StoreError as error:
            return [error if answer is None else answer for answer in answers]
        return [answer for answer in answers if answer is not None]

    async def read(self, *commands: tuple[str, ...]) -> list[Any]:
        """Run plain commands in one round trip; an error reply stands in its place in the list.

        Their replies carry no id, so a PING with a word of its own must come back as the last.
        """
        word = uuid4().hex

        async def talk(connection: AbstractConnection) -> list[Any]:
            replies = await self._exchange(connection, [*commands, ("PING", word)])
            if isinstance(replies[-1], ResponseError):
                raise replies[-1]
            if replies[-1] != word:
                raise self._crossed()
            return replies[:-1]

        return await self._in_own_task(lambda: self._use(talk))

    async def close(self) -> None:
        """Refuse new exchanges, wait for those under way, then close."""
        self._is_closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    async def _in_own_task(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Cancelling the caller stops the waiting, not the work."""
        if self._is_closed:
            raise StoreUnavailableError(f"the store at {self.place} was closed by this process")

        async def run() -> _T:
            return await work()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if its caller has left

    async def _use(self, talk: Callable[[AbstractConnection], Awaitable[_T]]) -> _T:
        """Lend a connection out, for `command_timeout` including the wait for it."""
        try:
            async with asyncio.timeout(self._timeout_s), self._free:
                return await self._lend(talk)
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"the store at {self.place} did not answer within {self._timeout_s:g} s"
            ) from error
        except (RedisError, OSError) as error:
            raise unavailable(self.place, error) from error

    async def _lend(self, talk: Callable[[AbstractConnection], Awaitable[_T]]) -> _T:
        connection = self._idle.pop() if self._idle else self._new()
        try:
            await self._factory.ensure_connection(connection)
            result = await talk(connection)
        except BaseException:
            # Whatever it was, a reply may still be on its way here: nobody may read it.
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        return result

    def _new(self) -> AbstractConnection:
        connection: AbstractConnection = self._factory.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def _run_on(
        self, connection: AbstractConnection, calls: Sequence[Call], answers: list[Answer | None]
    ) -> None:
        """Fill in `answers` as they come, so that those before a failure count."""
        unknown: list[int] = []
        await connection.send_packed_command(connection.pack_commands(c.by_hash() for c in calls))
        for at, call in enumerate(calls):
            reply = await self._reply(connection)
            if isinstance(reply, NoScriptError):  # it has not run: the server does not know it
                unknown.append(at)
            else:
                answers[at] = self._checked(call, reply)
        if unknown:
            texts = [calls[at].by_text() for at in unknown]
            await connection.send_packed_command(connection.pack_commands(texts))
        for at in unknown:
            answers[at] = self._checked(calls[at], await self._reply(connection))

    async def _exchange(
        self, connection: AbstractConnection, commands: Sequence[tuple[str, ...]]
    ) -> list[Any]:
        await connection.send_packed_command(connection.pack_commands(commands))
        return [await self._reply(connection) for _ in commands]

    async def _reply(self, connection: AbstractConnection) -> Any:
        """One reply; an error reply is one too, and leaves the connection in step."""
        try:
            return await connection.read_response()
        except ResponseError as error:
            return error

    def _checked(self, call: Call, reply: Any) -> Answer:
        if isinstance(reply, ResponseError):
            return unavailable(self.place, reply)
        if not isinstance(reply, list) or not reply or reply[0] != call.id:
            raise self._crossed()
        return reply

    def _crossed(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the store at {self.place} answered another question than was asked; "
            "the connection was closed"
        )


def _check_url(url: str) -> None:
    """Refuse what redis-py would take to mean something else, or nothing.

    In its URLs every setting of a connection can be given and overrides ours, protocol and retries
    too; and a path that is no number means the first database.
    """
    parts = urlsplit(url)
    if parts.scheme in _NOT_BUILT:
        raise StoreError(f"store.url: {_NOT_BUILT[parts.scheme]} is not built yet; use redis://")
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _URL_OPTIONS and not name.startswith("ssl_"):
            raise StoreError(
                f"store.url: {name} cannot be set there, only db, password and ssl_... can"
            )
    database = parts.path.strip("/")
    if parts.scheme in ("redis", "rediss") and database and not database.isdecimal():
        raise StoreError(f"store.url: {database!r} is no database number")
