"""The service's HTTP ports, which anybody on the host may connect to.

What connects there takes descriptors of the process that answers Check, so there is a bound: on how
many connections are open at once, and on how long each may be.
"""

import asyncio
import resource
from typing import cast

from aiohttp import web

from extauthz.config.values import Address
from extauthz.errors import OperatorError

CONNECTIONS_MAX = 64
"""Of one listener: a dozen scrapers, and none of the descriptors that Checks need."""

_CONNECTION_SECONDS_MAX = 20.0
"""For a request, its answer and whatever follows; twice what a scraper waits for one answer. Who
says nothing, or a byte now and then, keeps a place no longer."""

_DESCRIPTORS = 65_536
"""What 10,000 agents' connections and as many to providers take, and room to spare."""


class StartError(OperatorError):
    """The service cannot start; the text says why and what to do."""


def raise_descriptor_limit() -> None:
    """Take as many descriptors as the system grants without asking; children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class HttpListener:
    """One address with its routes."""

    def __init__(
        self, app: web.Application, *, connection_seconds_max: float = _CONNECTION_SECONDS_MAX
    ) -> None:
        app.on_response_prepare.append(_close_after)
        self._runner = web.AppRunner(app, access_log=None)
        self._connection_seconds_max = connection_seconds_max
        self._server: asyncio.Server | None = None
        self._open: set[_Place] = set()

    async def start(self, address: Address, name: str) -> None:
        """Listen.

        Raises:
            StartError: the address is taken, or not this host's.
        """
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._accept, address.host, address.port, reuse_address=True
            )
        except OSError as error:
            await self._runner.cleanup()
            raise StartError(
                f"listen.{name}: {address} cannot be listened on ({error.strerror}): "
                "stop what uses it, or choose another address"
            ) from error

    async def stop(self) -> None:
        """Listen no longer; answers under way have a moment."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def _accept(self) -> asyncio.Protocol:
        if len(self._open) >= CONNECTIONS_MAX:
            return _Refused()
        assert self._runner.server is not None
        return _Place(self._runner.server(), self._open, self._connection_seconds_max)


async def _close_after(_request: web.Request, response: web.StreamResponse) -> None:
    """One request a connection: none is in the middle of another when its time is over."""
    response.headers["Connection"] = "close"  # (aiohttp has written its own headers by now)
    response.force_close()


class _Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


class _Place(asyncio.Protocol):
    """A connection that counts and ends; what is said on it goes to aiohttp's own protocol."""

    def __init__(self, inner: asyncio.Protocol, open_: "set[_Place]", seconds_max: float) -> None:
        self._inner, self._open, self._seconds_max = inner, open_, seconds_max
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._open.add(self)
        abort = cast("asyncio.Transport", transport).abort  # (uvloop's is no subclass of it)
        self._end = asyncio.get_running_loop().call_later(self._seconds_max, abort)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        self._open.discard(self)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
