"""Streams stay streams: each piece reaches the client before the provider sends the next one.

The provider waits for that, so a piece that anything held back would end the call.
"""

import http.client
import threading
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from calls import headers_of
from dialects import DOCUMENTS, STREAMS, Dialect, encoded, json
from scripted_provider import JSON, Answer, scripted_provider
from sidecar import Sidecar, agent, nanousd, running_sidecar

SECONDS_MAX = 30
"""Envoy ends a call a good deal earlier."""
MB = 1_000_000
SHAPES = {
    "events": "OpenAI's chat", "events of who always tells": "Mistral's chat",
    "Anthropic's events": "Anthropic's messages", "a list": "Gemini's list",
    "frames": "Nova's at Bedrock", "a conversation's frames": "a conversation at Bedrock",
}  # fmt: skip


class Steps:
    """What the client has received, piece by piece."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.received = threading.Semaphore(0)
        self.kept_waiting = False

    def plain(self) -> Iterator[bytes]:
        for piece in self.pieces:
            yield piece
            self.wait()

    def gzipped(self) -> Iterator[bytes]:
        packer = zlib.compressobj(wbits=31)
        for piece in self.pieces:
            yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
            self.wait()
        yield packer.flush()

    def zstandard(self) -> Iterator[bytes]:
        packer = zstandard.ZstdCompressor().compressobj()
        for piece in self.pieces:
            yield packer.compress(piece) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            self.wait()
        yield packer.flush()

    def wait(self) -> None:
        self.kept_waiting = not self.received.acquire(timeout=SECONDS_MAX)
        if self.kept_waiting:
            raise TimeoutError


def steps_of(dialect: Dialect, size: int = 60) -> Steps:
    """Cut without regard to events, so that none of them is taken out."""
    body = encoded(dialect)
    return Steps([body[at : at + size] for at in range(0, len(body), size)])


def kind_of(dialect: Dialect) -> str:
    return dialect.shape if "/" in dialect.shape else JSON


CASES: dict[str, tuple[Dialect, Steps, str]] = {}
for what, name in SHAPES.items():
    CASES[what] = STREAMS[name], steps_of(STREAMS[name]), "plain"
for coding in ("gzipped", "zstandard"):
    CASES[coding] = STREAMS["OpenAI's chat"], steps_of(STREAMS["OpenAI's chat"]), coding
text = json.dumps(DOCUMENTS["an OpenAI chat"].document).encode()
CASES["a document"] = (
    DOCUMENTS["an OpenAI chat"],
    Steps([text[at : at + 60] for at in range(0, len(text), 60)]),
    "plain",
)


def large() -> Iterator[bytes]:
    """An event of 100 MB, whose usage stands behind it."""
    yield b'data: {"choices":[{"delta":{"content":"'
    for _ in range(100):
        yield b"x" * MB
    yield b'"}}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}\n\n'


STALLS = (
    "OpenAI's chat", "Anthropic's messages", "Gemini's list", "Nova's at Bedrock",
    "a conversation at Bedrock",
)  # fmt: skip
ended = threading.Event()


def stalling(dialect: Dialect, share: float) -> Iterator[bytes]:
    """As much of an answer; then nothing, and no end."""
    body = encoded(dialect)
    yield body[: int(len(body) * share)]
    ended.wait()


def answers() -> Iterable[Answer]:
    for dialect, steps, how in CASES.values():
        coding = {"gzipped": "gzip", "zstandard": "zstd"}.get(how, "")
        yield Answer(getattr(steps, how)(), kind_of(dialect), coding)
    yield Answer(large(), STREAMS["OpenAI's chat"].shape)
    for name in STALLS:
        yield Answer(stalling(STREAMS[name], 0.6), kind_of(STREAMS[name]))


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents = agent("bot", "1000.00")
    for number in range(len(STALLS)):
        agents |= agent(f"waiting{number}", "1000.00")
    with (
        scripted_provider(list(answers())) as url,
        running_sidecar(
            agents=agents, timeouts={"stream_idle_timeout": "4s"}, start=False
        ) as running,
    ):
        credential = {"env": "SANDBOX_OPENAI_CREDENTIAL"}
        providers: Any = running.config["providers"]
        for api in ("openai", "anthropic", "mistral", "gemini", "bedrock"):
            providers[api] = {"api": api, "upstream": url, "credential": credential}
        running.start()
        yield running
        ended.set()


def call(
    sidecar: Sidecar, number: int, dialect: Dialect, name: str = "bot"
) -> http.client.HTTPResponse:
    host, _, port = sidecar.egress.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=SECONDS_MAX)
    sidecar.clients.callback(connection.close)
    headers = headers_of(name) | {"x-case": str(number)}
    connection.request("POST", dialect.path, json.dumps(dialect.body), headers)
    return connection.getresponse()


@pytest.mark.parametrize("what", CASES)
def test_each_piece_has_passed_before_the_next_is_sent(sidecar: Sidecar, what: str) -> None:
    dialect, steps, _ = CASES[what]

    answer = call(sidecar, list(CASES).index(what), dialect)

    assert answer.status == 200
    for piece in steps.pieces:
        assert answer.read(len(piece)) == piece
        steps.received.release()
    assert answer.read() == b""
    assert not steps.kept_waiting
    sidecar.until_settled()
    line = sidecar.log_lines("settlement")[-1]
    assert (line["outcome"], line["exactness"]) == ("settled", "exact")


def test_a_stream_of_any_length_takes_bounded_memory(sidecar: Sidecar) -> None:
    envoy = Path(f"/proc/{sidecar.pid_of('envoy')}")
    (envoy / "clear_refs").write_text("5")  # from here on the peak counts anew
    before = peak_bytes(envoy)

    answer = call(sidecar, len(CASES), replace(STREAMS["OpenAI's chat"]))
    read = 0
    while piece := answer.read(MB):
        read += len(piece)

    assert read > 100 * MB
    assert peak_bytes(envoy) - before < 30 * MB
    sidecar.until_settled()
    assert sidecar.log_lines("settlement")[-1]["usage"]["output_tokens"] == 5


def test_an_answer_that_stalls_is_ended_and_spent_as_reserved(sidecar: Sidecar) -> None:
    def wait(number: int) -> None:
        dialect = STREAMS[STALLS[number]]
        answer = call(sidecar, len(CASES) + 1 + number, dialect, f"waiting{number}")
        assert answer.status == 200
        with suppress(http.client.HTTPException, OSError):
            answer.read()

    with ThreadPoolExecutor(len(STALLS)) as pool:
        list(pool.map(wait, range(len(STALLS))))

    sidecar.until_settled()
    reserved = {
        line["agent"]: nanousd(line["estimate_usd"]) for line in sidecar.log_lines("decision")
    }
    for number in range(len(STALLS)):
        name = f"waiting{number}"
        assert sidecar.balance(name) == (reserved[name], 0), STALLS[number]
        assert reserved[name] > STREAMS[STALLS[number]].cost_nanousd


def peak_bytes(process: Path) -> int:
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
