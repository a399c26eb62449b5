"""Reading bodies so that one caller's huge or contrived body delays nobody else's Check.

A small body is read at once. A large one goes to a process of its own kind: parsing holds the
interpreter, so a thread would not help. One agent has at most one large body there at a time, and a
body that takes too long costs its reader its life, not the others their turn.
"""

import asyncio
import contextlib
import logging
import os
import pickle
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from extauthz.providers import ADAPTERS
from extauthz.providers.base import Request, RequestError, RequestFacts
from extauthz.reasons import Reason
from extauthz.servicers.body_worker import READY

INLINE_BYTES_MAX = 64 * 1024
"""The worst body of this size (all brackets) takes about 3 ms to read, a usual one 50 us."""

_READERS = 2
_READ_SECONDS_MAX = 1.5
"""Well before Envoy gives up its Check: whoever sent the body is told why it is refused."""

_HEADER = struct.Struct("!II")

log = logging.getLogger(__name__)


class _Reader:
    """One child process that reads one body at a time."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def read(self, api: str, endpoint: str, request: Request) -> RequestFacts | RequestError:
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        call = pickle.dumps((api, endpoint, replace(request, body=b"")))
        process.stdin.write(_HEADER.pack(len(call), len(request.body)))
        process.stdin.write(call)
        process.stdin.write(request.body)  # on its own: 32 MiB are not copied once more
        await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(4), "big")
        answer = pickle.loads(await process.stdout.readexactly(size))  # noqa: S301 - our own child's
        assert isinstance(answer, RequestFacts | RequestError)
        return answer

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "extauthz.servicers.body_worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=False,
            )
            assert self._process.stdout is not None
            # Its imports take longer than most bodies: that time is no body's.
            await self._process.stdout.readexactly(len(READY))
        return self._process

    async def start(self) -> None:
        await self._running()

    def cpu_seconds(self) -> float:
        """What it has had of a processor so far; 0.0 where the system does not tell."""
        if self._process is None:
            return 0.0
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{self._process.pid}/stat").read_text()
            user, system = told.rpartition(")")[2].split()[11:13]  # proc_pid_stat(5): 14 and 15
            return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        return 0.0

    async def stop(self) -> None:
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._process = None


@dataclass(slots=True)
class BodyReader:
    """The service's `RequestReader`."""

    readers: int = _READERS
    read_seconds_max: float = _READ_SECONDS_MAX
    _idle: asyncio.Queue[_Reader] = field(default_factory=asyncio.Queue)
    _all: list[_Reader] = field(default_factory=list)
    _busy: Counter[str] = field(default_factory=Counter)
    _turn: asyncio.Condition = field(default_factory=asyncio.Condition)
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Start the readers, so that the first large body does not wait for one."""
        self._all = [_Reader() for _ in range(self.readers)]
        await asyncio.gather(*(reader.start() for reader in self._all))
        for reader in self._all:
            self._idle.put_nowait(reader)

    async def stop(self) -> None:
        """Stop the readers."""
        await asyncio.gather(*self._under_way)
        for reader in self._all:
            await reader.stop()

    async def read(self, api: str, endpoint: str, request: Request, *, caller: str) -> RequestFacts:
        """As `Adapter.read_request`; `caller` has its own share of the room for large bodies."""
        if len(request.body) <= INLINE_BYTES_MAX:
            return ADAPTERS[api].read_request(endpoint, request)
        async with self._turn:
            await self._turn.wait_for(lambda: not self._busy[caller])
            self._busy[caller] += 1
        reader, interrupted, spent_before = None, False, 0.0
        try:
            reader = await self._idle.get()
            interrupted = True
            spent_before = reader.cpu_seconds()
            async with asyncio.timeout(self.read_seconds_max):
                answer = await reader.read(api, endpoint, request)
            interrupted = False
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            log.warning("a body of %d bytes could not be read in time", len(request.body))
            if reader is not None and isinstance(error, TimeoutError):
                spent = reader.cpu_seconds() - spent_before
                if spent < self.read_seconds_max / 2:
                    raise RequestError(
                        Reason.SERVICE_UNAVAILABLE,
                        "this host is too busy to read the request body in time: try again shortly",
                    ) from None
            raise RequestError(
                Reason.BODY_TOO_LARGE,
                "the request body is too large or too complex to be read: send a smaller one",
            ) from None
        finally:
            # On its own: neither this answer nor a client that left waits for a new reader. But the
            # caller's next large body does, so that no caller ever takes more than one reader.
            task = asyncio.create_task(self._give_back(reader, caller, replace=interrupted))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def _give_back(self, reader: _Reader | None, caller: str, *, replace: bool) -> None:
        """End a turn. A reader that was interrupted in the middle of a body is started anew."""
        try:
            if reader is not None and replace:
                await reader.stop()
                await reader.start()
        except (asyncio.IncompleteReadError, OSError):
            log.exception("a reader of large bodies did not start, its next body tries again")
        finally:
            if reader is not None:
                self._idle.put_nowait(reader)
            async with self._turn:
                del self._busy[caller]
                self._turn.notify_all()
