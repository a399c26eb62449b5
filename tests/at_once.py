"""Many calls of one agent at one moment, from several processes with the real SDKs."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import anthropic
import openai

PROCESSES = 4
_SECONDS_MAX = 60
_spawn = multiprocessing.get_context("spawn")


class Crowd:
    """Processes that stand ready before they are told to call, all together."""

    def __init__(self, egress: str) -> None:
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        for _ in range(PROCESSES):
            ours, theirs = _spawn.Pipe()
            process = _spawn.Process(target=_serve, args=(theirs, egress), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_SECONDS_MAX)
            process.close()

    def call(self, key: str, model: str, calls: int, **fields: Any) -> list[tuple[int, str | None]]:
        """Make so many calls at once; the status of each, and the reason of a refusal."""
        for pipe in self._pipes:
            pipe.send((key, model, calls // PROCESSES, fields))
        for pipe in self._pipes:
            self._next_of(pipe)  # its threads wait for the word
        for pipe in self._pipes:
            pipe.send(None)
        return [answer for pipe in self._pipes for answer in self._next_of(pipe)]

    @staticmethod
    def _next_of(pipe: Any) -> Any:
        assert pipe.poll(_SECONDS_MAX), "a process does not answer"
        return pipe.recv()


def _serve(pipe: Any, egress: str) -> None:
    """One process: rounds of calls until the pipe is closed."""
    while True:
        try:
            key, model, calls, fields = pipe.recv()
        except EOFError:
            return
        with (
            openai.OpenAI(base_url=f"{egress}/openai/v1", api_key=key, max_retries=0) as gpt,
            anthropic.Anthropic(base_url=f"{egress}/anthropic", api_key=key, max_retries=0) as ant,
            ThreadPoolExecutor(calls) as pool,
        ):
            together = threading.Barrier(calls + 1)
            creates = [gpt.chat.completions.create, ant.messages.create]
            under_way = [
                pool.submit(_call, together, creates[number % 2], model, fields)
                for number in range(calls)
            ]
            pipe.send("ready")
            pipe.recv()
            together.wait(_SECONDS_MAX)
            pipe.send([call.result(_SECONDS_MAX) for call in under_way])


def _call(
    together: threading.Barrier, create: Any, model: str, fields: dict[str, Any]
) -> tuple[int, str | None]:
    together.wait(_SECONDS_MAX)
    try:
        create(model=model, messages=[{"role": "user", "content": "hi"}], **fields)
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return error.status_code, error.response.headers.get("x-budget-reason")
    return 200, None
