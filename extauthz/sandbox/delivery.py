"""Bringing an answer to the client, whole or with the ending that the script asks for."""

import asyncio
import os
import socket
import struct
import zlib
from collections.abc import Iterable

from aiohttp import web

from extauthz.sandbox.script import Script
from extauthz.sandbox.wire import Event

_CUT = frozenset({"reset", "stall"})


def arrange(events: list[Event], error: Event, script: Script) -> list[bytes]:
    """The events of a stream on the wire, up to where the script has them end."""
    newline = "\r\n" if script.newline == "crlf" else "\n"
    if script.ending == "error-event":
        events = [*events[: len(events) // 2], error]
    if script.ending == "no-final-blank-line":
        # Without its closing event a stream ends with the usage, where a missing line matters.
        events = events[:-1]
    parts = [event.encode(newline) for event in events]
    if script.ending == "no-final-blank-line":
        parts[-1] = parts[-1].removesuffix(newline.encode())
    return parts


async def deliver(
    request: web.Request,
    response: web.StreamResponse,
    parts: list[bytes],
    script: Script,
    *,
    stream: bool,
) -> None:
    """Write the answer; on return, all of it has been handed to the connection.

    A client that leaves, and an ending that cuts the connection, cancel the handler that awaits
    this (`handler_cancellation`), so there is no way to return from half an answer.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    # Without a buffer of our own, "written" means that the kernel has it.
    transport.set_write_buffer_limits(high=0)
    if script.ending == "truncate-headers":
        transport.close()
        await _cancelled()
    if script.content_encoding == "gzip":
        response.headers["content-encoding"] = "gzip"
        parts = _gzip(parts)
    if stream:
        response.enable_chunked_encoding()
    else:
        whole = b"".join(parts)
        response.content_length = len(whole)
        parts = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    await response.prepare(request)
    if script.ending in _CUT:
        await _write(response, parts[: len(parts) // 2], script)
        if script.ending == "reset":
            _reset(transport)
        await _cancelled()
    if stream:
        await _write(response, parts, script)
        await response.write_eof()
    else:
        await response.write_eof(b"".join(parts))


async def _write(response: web.StreamResponse, parts: list[bytes], script: Script) -> None:
    for index, part in enumerate(parts):
        if index and script.chunk_delay_ms:
            await asyncio.sleep(script.chunk_delay_ms / 1000)
        await response.write(part)


def _gzip(parts: Iterable[bytes]) -> list[bytes]:
    """Each part so that a client can read it before the next one comes."""
    compressor = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    flushed = [compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH) for part in parts]
    return [*flushed, compressor.flush()]


def _reset(transport: asyncio.Transport) -> None:
    """Send what is written, then cut the connection with an RST."""
    # With no time to linger, closing resets. The option belongs to the socket, not to the
    # descriptor; the duplicate is only a way to reach it that every event loop offers.
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.close()


async def _cancelled() -> None:
    """Wait for the handler's end: aiohttp cancels it once the connection is gone."""
    await asyncio.Event().wait()
