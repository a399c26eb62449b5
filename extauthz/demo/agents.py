"""The agents: programs that use the official SDKs as anybody would.

All that tells them of extauthz is the base_url and the virtual key. They say who they are in the
field that each API has for it, so that the provider's bill can be told apart by agent; extauthz
never believes that field.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import anthropic
import openai
from openai.types.chat import ChatCompletionUserMessageParam

from extauthz.demo.stage import UNPRICED_MODEL

RUNAWAY_WORKERS = 8
HANG_UPS = 2

_QUESTIONS = (
    "Which of our invoices are overdue?",
    "Draft a friendly reminder for the oldest one.",
    "Summarise what we did this week in three sentences.",
)


@dataclass(slots=True)
class Tally:
    """What one agent did, as its own program saw it."""

    name: str
    calls: int = 0
    raised: Counter[str] = field(default_factory=Counter)
    last_error: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self) -> None:
        """The agent is about to call its SDK."""
        with self._lock:
            self.calls += 1

    def fail(self, error: Exception) -> None:
        """The SDK raised."""
        package = type(error).__module__.partition(".")[0]
        with self._lock:
            self.raised[f"{package}.{type(error).__name__}"] += 1
            self.last_error = str(error)


@dataclass(slots=True)
class Agent:
    """One agent: its two SDK clients and what it has done with them."""

    tally: Tally
    openai_url: str
    anthropic_url: str
    key: str
    stop: threading.Event
    """the demo is over: only so that its threads end with it"""
    gpt: openai.OpenAI = field(init=False)
    claude: anthropic.Anthropic = field(init=False)

    def __post_init__(self) -> None:
        self.gpt = openai.OpenAI(base_url=self.openai_url, api_key=self.key)
        self.claude = anthropic.Anthropic(base_url=self.anthropic_url, api_key=self.key)

    @property
    def name(self) -> str:
        """As in the config."""
        return self.tally.name

    def run(self, *programs: Callable[[], None]) -> list[threading.Thread]:
        """Each program in a thread of its own, until it ends or the SDK raises."""
        threads = [
            threading.Thread(target=self._guarded, args=(program,), daemon=True, name=self.name)
            for program in programs
        ]
        for thread in threads:
            thread.start()
        return threads

    def ask_openai(self, model: str, question: str, cap: int) -> None:
        """A chat completion, in one piece."""
        self.tally.call()
        self.gpt.chat.completions.create(
            model=model,
            messages=[_message(question)],
            max_completion_tokens=cap,
            service_tier="default",  # the estimate need not reckon with a dearer tier
            user=self.name,
        )

    def stream_openai(self, model: str, question: str, cap: int, *, chunks: int = 2**31) -> None:
        """A streamed chat completion, of which only so many chunks are read."""
        self.tally.call()
        with self.gpt.chat.completions.create(
            model=model,
            messages=[_message(question)],
            max_completion_tokens=cap,
            service_tier="default",
            user=self.name,
            stream=True,
        ) as stream:
            _read(stream, chunks)

    def ask_claude(self, model: str, question: str, cap: int) -> None:
        """A message, in one piece."""
        self.tally.call()
        self.claude.messages.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=cap,
            metadata={"user_id": self.name},
        )

    def stream_claude(self, model: str, question: str, cap: int, *, chunks: int = 2**31) -> None:
        """A streamed message, of which only so many events are read."""
        self.tally.call()
        with self.claude.messages.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=cap,
            metadata={"user_id": self.name},
            stream=True,
        ) as stream:
            _read(stream, chunks)

    def close(self) -> None:
        """End what is still open."""
        self.gpt.close()
        self.claude.close()

    def _guarded(self, program: Callable[[], None]) -> None:
        try:
            program()
        except Exception as error:  # noqa: BLE001 - whatever it is, the verdict names it
            if not self.stop.is_set():
                self.tally.fail(error)


def assist(agent: Agent) -> None:
    """The assistant: a few questions, each to both providers, plain and streaming."""
    for question in _QUESTIONS:
        agent.ask_openai("gpt-4.1", question, 600)
        agent.stream_openai("gpt-4o-mini", question, 600)
        agent.ask_claude("claude-haiku-4-5", question, 600)
        agent.stream_claude("claude-sonnet-4-5", question, 600)


def run_away(agent: Agent, worker: int) -> None:
    """One worker of the runaway: the answer is never good enough, so it asks again, for ever."""
    agent.stop.wait(worker * 0.11)  # they were not started at the same instant
    while not agent.stop.is_set():
        agent.ask_openai("gpt-5", "That is not what I asked for. Again!", 2_000 + 300 * worker)


def hang_up(agent: Agent) -> None:
    """Listens to one answer, and leaves two others half-way."""
    agent.stream_openai("gpt-4.1", "Tell me a short story.", 800)
    agent.stream_openai("gpt-4.1", "Tell me a long story.", 4_000, chunks=5)
    agent.stream_claude("claude-sonnet-4-5", "Tell me a long story.", 4_000, chunks=7)


def come_without_key(agent: Agent) -> None:
    """Somebody who was never given a virtual key; the SDK insists on one unless told to omit it."""
    agent.tally.call()
    agent.gpt.chat.completions.create(
        model="gpt-4.1",
        messages=[_message("May I come in?")],
        user=agent.name,
        extra_headers={"Authorization": openai.Omit()},
    )


def try_unpriced(agent: Agent) -> None:
    """Tries a model that the provider offers, and of which nobody knows the price."""
    agent.ask_openai(UNPRICED_MODEL, "Are you better than the others?", 100)


def _message(question: str) -> ChatCompletionUserMessageParam:
    return {"role": "user", "content": question}


def _read(stream: Iterable[object], chunks: int) -> None:
    for count, _ in enumerate(stream, start=1):
        if count == chunks:
            return
