"""A provider as fast as Python can be: bytes that were prepared, without reading what is asked.

The header `x-bench` says which: `chat` (the default), `stream`, `coalesced`, `plain`, `escaped` or
`logprobs`.
"""

import argparse
import asyncio
import json
import re
from typing import cast

import uvloop

EVENTS = 10_000
_BIG_BYTES = 2_000_000
_WANTED = re.compile(rb"\r\nx-bench: ?(\w+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d+)", re.IGNORECASE)
_USAGE = {"prompt_tokens": 187, "completion_tokens": 96, "total_tokens": 283}
_HEAD = {"id": "chatcmpl-bench", "created": 1760000000, "model": "gpt-4o-mini-2024-07-18"}


def _answer(content: str, **choice: object) -> bytes:
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": "stop", **choice}]
    whole = {**_HEAD, "object": "chat.completion", "choices": choices, "usage": _USAGE}
    body = json.dumps(whole).encode()
    length = f"content-length: {len(body)}\r\n\r\n".encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + length + body


def _logprobs() -> bytes:
    token = {"token": " word", "logprob": -0.00123, "bytes": [32, 119, 111, 114, 100]}
    one = {**token, "top_logprobs": [token] * 5}
    size = len(json.dumps(one))
    return _answer("word", logprobs={"content": [one] * (_BIG_BYTES // size)})


ANSWERS = {
    b"chat": lambda: _answer("That is covered by the guarantee. " * 12),
    b"plain": lambda: _answer("x" * _BIG_BYTES),
    b"escaped": lambda: _answer('"\n' * (_BIG_BYTES // 4)),
    b"logprobs": _logprobs,
}


def events() -> list[bytes]:
    """A stream's events, each a chunk of HTTP/1.1; the last but one tells the usage."""
    delta = {"index": 0, "delta": {"content": " word"}, "finish_reason": None}
    chunk = {**_HEAD, "object": "chat.completion.chunk", "choices": [delta], "usage": None}
    last = {**chunk, "choices": [], "usage": _USAGE}
    data = [json.dumps(chunk)] * (EVENTS - 2) + [json.dumps(last), "[DONE]"]
    texts = (f"data: {text}\n\n".encode() for text in data)
    return [b"%x\r\n%s\r\n" % (len(text), text) for text in texts]


class Upstream(asyncio.Protocol):
    """One connection."""

    prepared: dict[bytes, bytes]
    stream: list[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport, self._seen = cast("asyncio.Transport", transport), b""
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._seen += data
        head, found, body = self._seen.partition(b"\r\n\r\n")
        if not found:
            return
        length = _LENGTH.search(head)
        is_whole = len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")
        if is_whole:
            self._seen = b""
            wanted = _WANTED.search(head)
            self._answer(wanted[1] if wanted else b"chat")

    def _answer(self, wanted: bytes) -> None:
        if wanted in self.prepared:
            self._transport.write(self.prepared[wanted])
            return
        task = asyncio.create_task(self._write_events(one_by_one=wanted == b"stream"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write_events(self, *, one_by_one: bool) -> None:
        """With one write for each event, or for a hundred."""
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        self._transport.write(head + b"transfer-encoding: chunked\r\n\r\n")
        step = 1 if one_by_one else 100
        for at in range(0, EVENTS, step):
            await self._may_write.wait()
            self._transport.write(b"".join(self.stream[at : at + step]))
            await asyncio.sleep(0)
        self._transport.write(b"0\r\n\r\n")

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._may_write.set()


async def serve(port: int) -> None:
    """Answer for ever."""
    Upstream.prepared = {name: make() for name, make in ANSWERS.items()}
    Upstream.stream = events()
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))
