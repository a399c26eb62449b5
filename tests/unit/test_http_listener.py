"""What anybody on the host may connect to takes no more of the service than its share."""

import asyncio
import contextlib
import resource
import socket

import pytest
from aiohttp import web
from sidecar import free_port

from extauthz.config.values import Address
from extauthz.server import http_listener
from extauthz.server.http_listener import CONNECTIONS_MAX, HttpListener, StartError


def hello() -> web.Application:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.add_routes([web.get("/", answer)])
    return app


async def get(address: Address) -> bytes:
    """The answer's end; empty where the connection was closed without one."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        return (await reader.read())[-5:]
    return b""


async def ended(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    return True


async def test_silent_connections_take_so_many_places_and_lose_them_again():
    listener = HttpListener(hello(), connection_seconds_max=2)
    address = Address("127.0.0.1", free_port())
    await listener.start(address, "metrics")
    crowd = [
        await asyncio.open_connection(address.host, address.port)
        for _ in range(CONNECTIONS_MAX + 40)
    ]
    try:
        over = [asyncio.create_task(ended(reader)) for reader, _ in crowd]
        await asyncio.wait_for(asyncio.gather(*over[CONNECTIONS_MAX:]), 60)
        assert len(listener._open) <= CONNECTIONS_MAX

        await asyncio.wait_for(asyncio.gather(*over), 60)

        assert await get(address) == b"hello"
    finally:
        for _, writer in crowd:
            writer.close()
        await listener.stop()


async def test_a_connection_ends_with_its_answer_and_never_in_the_middle_of_another():
    listener, address = HttpListener(hello()), Address("127.0.0.1", free_port())
    await listener.start(address, "metrics")
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await listener.stop()
    assert answer.endswith(b"hello")
    assert b"connection: close" in answer.lower()


async def test_an_address_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(StartError, match=r"listen\.admin: 127"):
            await HttpListener(hello()).start(address, "admin")


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((1024, 20_000), (20_000, 20_000)),
        ((1024, 10**9), (65_536, 10**9)),
        ((1024, resource.RLIM_INFINITY), (65_536, resource.RLIM_INFINITY)),
        ((100_000, 10**9), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_a_low_limit_of_descriptors_is_raised_as_far_as_the_system_lets(
    limits, raised, monkeypatch
):
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(http_listener.resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(http_listener.resource, "setrlimit", lambda _, new: asked.append(new))

    http_listener.raise_descriptor_limit()

    assert asked == ([raised] if raised else [])
