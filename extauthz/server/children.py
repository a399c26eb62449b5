"""Child processes that live and die with their parent, and are started again when they die."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from extauthz.errors import OperatorError

_PR_SET_PDEATHSIG = 1
_BACKOFF_SECONDS = (0.1, 5.0)
_SETTLED_SECONDS = 10.0
_POLL_SECONDS = 0.02
_LAST_LINES = 3

log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


class ChildError(OperatorError):
    """A child did not become ready; the text says which, and where to look."""


@dataclass(slots=True)
class Child:
    """One process. `is_ready` is polled after each start."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    is_ready: Callable[[], Awaitable[bool]]
    ready_seconds: float = 60.0
    """long, for a host that is busy, as it is at boot; a process that fails ends at once"""
    log_file: Path | None = None
    """where its output goes; None: to the parent's standard error"""
    held_open: Sequence[int] = ()
    """descriptors that it inherits: the lock that says somebody is still alive"""
    _process: asyncio.subprocess.Process | None = None
    _stopping: bool = False
    _watcher: asyncio.Task[None] | None = field(default=None, repr=False)

    async def start(self) -> None:
        """Start it, wait until it is ready, and keep it running from then on.

        Raises:
            ChildError: it ended or did not get ready in time.
        """
        await self._spawn()
        await self._wait_ready()
        self._watcher = asyncio.create_task(self._keep_running(), name=f"watch {self.name}")

    async def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL after a while."""
        self._stopping = True
        if self._watcher is not None:
            self._watcher.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(seconds):
                await process.wait()
        except TimeoutError:
            log.warning("%s did not end within %.0f s and is killed", self.name, seconds)
            process.kill()
            await process.wait()

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    @property
    def _messages(self) -> str:
        """Where to look, and the last words that are there."""
        if self.log_file is None:
            return "its messages above"
        with contextlib.suppress(OSError):
            last_words = self.log_file.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            return "\n  ".join([f"{self.log_file}, which ends with", *last_words])
        return str(self.log_file)

    async def _spawn(self) -> None:
        output = self.log_file.open("ab") if self.log_file else None
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                env=dict(self.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A session of its own: Ctrl-C reaches the parent only, which stops the children in
                # the right order.
                start_new_session=True,
                preexec_fn=_die_with_parent,
                pass_fds=tuple(self.held_open),
            )
        finally:
            if output is not None:
                output.close()

    async def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.ready_seconds
        while not await self.is_ready():
            if self._process.returncode is not None:
                raise ChildError(
                    f"{self.name} ended at its start with status {self._process.returncode}: "
                    f"see {self._messages}"
                )
            if time.monotonic() > deadline:
                await self.stop(1)
                raise ChildError(
                    f"{self.name} was not ready within {self.ready_seconds:.0f} s: "
                    f"see {self._messages}"
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def _keep_running(self) -> None:
        backoff, longest = _BACKOFF_SECONDS
        while True:
            assert self._process is not None
            started = time.monotonic()
            status = await self._process.wait()
            if time.monotonic() - started > _SETTLED_SECONDS:
                backoff = _BACKOFF_SECONDS[0]
            log.error(
                "%s ended with status %s and is started again in %.1f s: see %s",
                self.name,
                status,
                backoff,
                self._messages,
            )
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, longest)
            with contextlib.suppress(OSError):
                await self._spawn()


def _die_with_parent() -> None:
    """In the child, before exec: end when the parent is killed, so that nothing is left behind."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def environment_without(names: set[str]) -> dict[str, str]:
    """This process's environment, less what a child must not see."""
    return {name: value for name, value in os.environ.items() if name not in names}
