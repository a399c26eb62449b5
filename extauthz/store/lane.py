"""One connection that many commands share: the answers come in the order of the questions.

A command costs no task and waits for no other's answer. Who stops waiting leaves his place in the
order: the reply that comes is dropped there, and reaches nobody else.
"""

import asyncio
from collections import deque
from itertools import takewhile
from typing import Any, NamedTuple

from hiredis import Reader, pack_command
from redis._parsers import BaseParser  # which class an error reply is of: nowhere else
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from extauthz.store.base import StoreUnavailableError
from extauthz.store.failures import unavailable
from extauthz.store.script import Call

UNDER_WAY_MAX = 1024
"""Beyond so many unanswered commands others take a connection of their own, if there is one."""

_LAST_LOOK_S = 0.01
"""A process that was frozen finds the clock late before it finds the answers, which lie there."""


class _Asked(NamedTuple):
    id: str
    answer: asyncio.Future[Any]
    due: float


class Lane(asyncio.Protocol):
    """Asks scripts by their hash; whatever cannot be asked so, goes another way.

    An answer is a reply with the id that was asked for, or an error: a `ResponseError` that the
    server gave (nothing else was disturbed), or a `StoreUnavailableError` after which the lane is
    closed, and nobody knows whether the script was run.
    """

    def __init__(self, connection: AbstractConnection, place: str, timeout_s: float) -> None:
        """Take over a connection that has said hello; nobody else may use it from here on."""
        self._connection = connection
        self._place, self._timeout_s = place, timeout_s
        self._loop = asyncio.get_running_loop()
        self._asked: deque[_Asked] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._overdue: _Asked | None = None
        self._closing: asyncio.Event | None = None
        self._is_late = self._is_lost = False
        self._reader = Reader(
            encoding="utf-8", protocolError=_OutOfStepError, replyError=BaseParser.parse_error
        )
        writer = connection._writer  # noqa: SLF001 - redis-py has no other way to its transport
        assert writer is not None
        self._transport = writer.transport
        self._transport.set_protocol(self)

    @property
    def has_room(self) -> bool:
        """Whether a command can be asked here now."""
        return not self.is_over and self._closing is None and len(self._asked) < UNDER_WAY_MAX

    @property
    def is_over(self) -> bool:
        """Whether it takes no command any more: it was lost, or has left one without its answer."""
        return self._is_lost or self._is_late

    @property
    def is_lost(self) -> bool:
        """Whether nobody waits here any more."""
        return self._is_lost

    def ask(self, call: Call) -> asyncio.Future[Any]:
        """Run a script. Cancelling the answer stops nothing.

        Raises:
            UnicodeEncodeError: the call has a word that is no text; nothing was sent.
        """
        packed = pack_command(call.by_hash())  # type: ignore[arg-type] # of one word only, it says
        asked = _Asked(call.id, self._loop.create_future(), self._loop.time() + self._timeout_s)
        self._asked.append(asked)
        self._transport.write(packed)
        if self._watch is None:
            self._look_at(asked.due)
        return asked.answer

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_lost:
            return
        self._reader.feed(data)
        try:
            while not self._is_lost and (reply := self._reader.gets()) is not False:
                self._take(reply)
        except _OutOfStepError:
            self._lose(
                StoreUnavailableError(
                    f"the store at {self._place} answered another question than was asked; the "
                    "connection was closed"
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        why = exc or "the connection was closed"
        self._lose(StoreUnavailableError(f"the store at {self._place} cannot be used: {why}"))

    async def close(self) -> None:
        """Wait for the answers that are still to come, then close."""
        if self._asked and not self._is_lost:
            self._closing = asyncio.Event()
            await self._closing.wait()
        self._lose(StoreUnavailableError(f"the store at {self._place} was closed by this process"))

    def _take(self, reply: Any) -> None:
        if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
            # It serves nobody here (LOADING, NOAUTH): it says so without being asked, too.
            self._lose(unavailable(self._place, reply))
            return
        if not self._asked:
            raise _OutOfStepError
        asked = self._asked.popleft()
        if not isinstance(reply, ResponseError) and (
            not isinstance(reply, list) or not reply or reply[0] != asked.id
        ):
            self._asked.appendleft(asked)
            raise _OutOfStepError
        if not asked.answer.done():  # its caller may have left
            asked.answer.set_result(reply)
        if self._closing is not None and not self._asked:
            self._closing.set()

    def _look(self) -> None:
        """Whether the oldest question has waited too long; then this lane takes no other.

        The younger ones have the rest of their time all the same: one that a frozen store still
        runs after its caller was told that there is no answer must be too old for it by then.
        """
        self._watch = None
        if self._is_lost:
            return
        error = StoreUnavailableError(
            f"the store at {self._place} did not answer within {self._timeout_s:g} s"
        )
        now = self._loop.time()
        if not self._asked:
            if self._is_late:
                self._lose(error)
            return
        oldest = self._asked[0]
        if oldest.due > now:
            self._look_at(oldest.due)
        elif not self._is_late and oldest is not self._overdue:
            self._overdue = oldest
            self._look_at(now + _LAST_LOOK_S)
        else:
            self._is_late = True
            overdue = list(takewhile(lambda asked: asked.due <= now, self._asked))
            if len(overdue) == len(self._asked):
                self._lose(error)
                return
            self._look_at(self._asked[len(overdue)].due)
            for asked in overdue:
                if not asked.answer.done():
                    asked.answer.set_result(error)

    def _look_at(self, when: float) -> None:
        self._watch = self._loop.call_at(when, self._look)

    def _lose(self, error: StoreUnavailableError) -> None:
        self._is_lost = True
        self._transport.abort()
        self._connection._close()  # type: ignore[no-untyped-call]  # noqa: SLF001 - at once
        while self._asked:
            answer = self._asked.popleft().answer
            if not answer.done():
                answer.set_result(error)
        if self._closing is not None:
            self._closing.set()


class _OutOfStepError(Exception):
    """A reply that nobody has asked for, or that is none."""
