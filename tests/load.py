"""Agents that call without pause, whatever happens to the sidecar under them."""

import itertools
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import anthropic
import openai
from sidecar import Sidecar

MESSAGES: Any = [{"role": "user", "content": "hello"}]
_SLOW = {
    "x-sandbox-chunks": "4",
    "x-sandbox-chunk-delay-ms": "15",
    "x-sandbox-latency-ms": "30",
}


_REST_SECONDS = 0.05
"""after a call that failed, so that an outage is no race between agents and their refusals"""


@dataclass(slots=True)
class Load:
    """JSON calls and streams to both providers, in turn, by each of several workers."""

    sidecar: Sidecar
    agent: str
    workers: int = 6
    completed: int = 0
    failed: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._threads = [
            threading.Thread(target=self._work, args=(number,)) for number in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Call no more, and wait until the calls under way have ended."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        gpt, claude = self.sidecar.openai(self.agent), self.sidecar.anthropic(self.agent)
        common: dict[str, Any] = {
            "messages": MESSAGES,
            "max_tokens": 50,
            "extra_headers": _SLOW,
        }
        user = {"user": self.agent}
        metadata = {"metadata": {"user_id": self.agent}}
        for turn in itertools.count(number):
            if self._stop.is_set():
                return
            ended = False
            with suppress(openai.OpenAIError, anthropic.AnthropicError):
                match turn % 4:
                    case 0:
                        gpt.chat.completions.create(model="gpt-4o-mini", **common, **user)
                    case 1:
                        claude.messages.create(model="claude-haiku-4-5", **common, **metadata)
                    case 2:
                        for _ in gpt.chat.completions.create(
                            model="gpt-4o-mini", stream=True, **common, **user
                        ):
                            pass
                    case 3:
                        for _ in claude.messages.create(
                            model="claude-haiku-4-5", stream=True, **common, **metadata
                        ):
                            pass
                ended = True
            with self._lock:
                self.completed += ended
                self.failed += not ended
            if not ended:
                self._stop.wait(_REST_SECONDS)


@dataclass(slots=True)
class Streams:
    """Streams that have all begun where the block begins, and last about so many seconds."""

    sidecar: Sidecar
    agent: str
    seconds: int
    count: int
    ended: int = 0
    """so many were read to their end"""
    _begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._read) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            assert self._begun.acquire(timeout=60), "a stream did not begin"
        return self

    def __exit__(self, *exc: object) -> None:
        self.join()

    def join(self) -> None:
        """Wait until all have ended."""
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        chunks = {
            "x-sandbox-chunks": str(4 * self.seconds),
            "x-sandbox-chunk-delay-ms": "250",
        }
        with self.sidecar.openai(self.agent).chat.completions.create(
            model="gpt-4o-mini",
            messages=MESSAGES,
            max_tokens=50,
            user=self.agent,
            stream=True,
            extra_headers=chunks,
        ) as answer:
            next(iter(answer))
            self._begun.release()
            for _ in answer:
                pass
        with self._lock:
            self.ended += 1
