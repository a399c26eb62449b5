"""A server that speaks enough RESP to lie: it answers late, out of step, or with an error."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

Reply = Callable[[list[str]], Awaitable[str]]


def array(*words: str) -> str:
    return f"*{len(words)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in words)


class FakeServer:
    """Answers every command with what `reply` makes of it; counts its connections."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._dir = tempfile.TemporaryDirectory(prefix="xa-", dir="/tmp")
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = f"unix://{self._dir.name}/s"
        self.opened = 0
        self.closed = asyncio.Event()
        """Set when a client has closed a connection."""

    async def __aenter__(self) -> Self:
        path = str(Path(self._dir.name) / "s")
        self._server = await asyncio.start_unix_server(self._serve, path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()
        self._dir.cleanup()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self._writers.add(writer)
        while line := await reader.readline():
            words = [await self._word(reader) for _ in range(int(line[1:]))]
            is_setup = words[0] == "CLIENT"
            writer.write(("+OK\r\n" if is_setup else await self._reply(words)).encode())
        self.closed.set()
        writer.close()

    @staticmethod
    async def _word(reader: asyncio.StreamReader) -> str:
        size = int((await reader.readline())[1:])
        return (await reader.readexactly(size + 2))[:-2].decode()
