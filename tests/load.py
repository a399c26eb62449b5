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
