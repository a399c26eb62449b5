"""Prompts and completions are nowhere in what the system writes: every provider, every ending."""

import http.client
import json
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from calls import CHAT, MESSAGES, chat, headers_of, message, post, send
from servers import until
from sidecar import Sidecar, agent, running_sidecar

from extauthz.config import load
from extauthz.sandbox.app import DEFAULT_GOOGLE_KEY
from extauthz.server.store_url import store_url

PROMPT, ANSWER = "zebra-prompt-7f3a", "zebra-answer-91c2"
SAID: Any = [{"role": "user", "content": PROMPT}]
PARTS = [{"parts": [{"text": PROMPT}]}]
GEMINI = "/gemini/v1beta/models/gemini-2.5-flash"

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, chat(messages=SAID)),
    "chat, a stream": (CHAT, chat(messages=SAID, stream=True)),
    "responses": ("/openai/v1/responses", {"model": "gpt-4o-mini", "input": PROMPT}),
    "completions": (
        "/openai/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": PROMPT}
    ),
    "embeddings": (
        "/openai/v1/embeddings", {"model": "text-embedding-3-small", "input": [PROMPT]}
    ),
    "messages": (MESSAGES, message(messages=SAID)),
    "messages, a stream": (MESSAGES, message(messages=SAID, stream=True, system=PROMPT)),
    "gemini": (f"{GEMINI}:generateContent", {"contents": PARTS}),
    "gemini, a stream": (f"{GEMINI}:streamGenerateContent?alt=sse", {"contents": PARTS}),
    "cohere": ("/cohere/v2/chat", {"model": "command-a-03-2025", "messages": SAID}),
    # refused by Check, each with the prompt where an error could quote it
    # (a model's name is logged as it was sent, for who has to price it)
    "an unknown model": (CHAT, chat(messages=SAID, model="no-such-model")),
    "an unknown field": (CHAT, chat(messages=SAID, **{PROMPT: 1})),
    "a wrong type": (CHAT, chat(messages=SAID, max_tokens=PROMPT)),
    "an unknown path": (f"/openai/v1/{PROMPT}", chat()),
    "no provider": (f"/{PROMPT}/v1", chat()),
    "a query": (f"{CHAT}?q={PROMPT}", chat()),
}  # fmt: skip
ENDINGS: list[dict[str, str]] = [
    {"x-sandbox-ending": "no-usage"},
    {"x-sandbox-ending": "reset"},
    {"x-sandbox-ending": "error-event"},
    {"x-sandbox-ending": "truncate-headers"},
    {"x-sandbox-status": "400"},
    {"x-sandbox-status": "500"},
    {"x-sandbox-status": PROMPT},  # the sandbox's error quotes it
    {"x-sandbox-tool-input": json.dumps({"city": ANSWER})},
]
BROKEN = [
    f'{{"model":"gpt-4o-mini","{PROMPT}":1,"{PROMPT}":2}}'.encode(),
    f'{{"model":"gpt-4o-mini","messages":[{{"content":"{PROMPT}'.encode() + b'\xff"}]}',
    PROMPT.encode(),
]


@pytest.fixture(scope="module")
def used() -> Iterator[Sidecar]:
    agents = agent("bot", "100.00") | agent("poor", "0.000001")
    with running_sidecar(agents=agents, start=False) as running:
        running.env["SANDBOX_GOOGLE_CREDENTIAL"] = DEFAULT_GOOGLE_KEY
        openai = running.config["providers"]["openai"]
        running.config["providers"] |= {
            "cohere": {**openai, "api": "cohere"},
            "gemini": {
                **openai, "api": "gemini", "credential": {"env": "SANDBOX_GOOGLE_CREDENTIAL"}
            },
        }  # fmt: skip
        running.start()
        use(running)
        yield running


def use(sidecar: Sidecar) -> None:
    said = {"x_sandbox_response_text": ANSWER}
    statuses = {
        name: post(sidecar, "bot", body, path=path, **said).status
        for name, (path, body) in CALLS.items()
    }
    assert set(list(statuses.values())[:10]) == {200}, statuses
    assert 200 not in list(statuses.values())[10:], statuses
    for path, body in (CALLS["chat"], CALLS["chat, a stream"], CALLS["messages, a stream"]):
        for ending in ENDINGS:
            with suppress(http.client.HTTPException, ConnectionError):
                headers = {"x-sandbox-response-text": ANSWER, **ending}
                send(sidecar, json.dumps(body).encode(), headers_of("bot") | headers, path=path)
    for data in BROKEN:
        post(sidecar, "bot", data)
    post(sidecar, "poor", CALLS["chat"][1])
    post(sidecar, "nobody", CALLS["chat"][1])
    sidecar.until_settled()


def written(sidecar: Sidecar) -> Iterator[tuple[str, bytes]]:
    """All that is on disk, was printed, or can be asked for."""
    for path in sidecar.data_dir.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
    yield "output", sidecar.output.encode()
    with urllib.request.urlopen(f"{sidecar.metrics_url}/metrics", timeout=20) as response:
        yield "metrics", response.read()
    yield "books", repr(sidecar.rows()).encode()
    yield "balances", json.dumps(sidecar.standing()).encode()


def test_no_prompt_and_no_completion_is_in_anything_written(used: Sidecar) -> None:
    archived = used.data_dir / "books"
    until(lambda: any(path.stat().st_size for path in archived.rglob("*") if path.is_file()))
    places = dict(written(used)) | {"store": dump(used)}

    assert len(places["store"]) > 1000
    assert any("appendonly" in place for place in places)
    assert any("access_log" in place for place in places)
    # A path that an agent makes up is in the access log, and may hold what it likes: no body is.
    paths = {place for place, content in places.items() if PROMPT.encode() in content}
    assert {Path(place).name for place in paths} <= {"access_log.jsonl"}
    lines = places[str(used.data_dir / "access_log.jsonl")].splitlines()
    quoting = [json.loads(line) for line in lines if PROMPT.encode() in line]
    assert {line["path"] for line in quoting} == {f"/openai/v1/{PROMPT}", f"/{PROMPT}/v1"}
    assert [place for place, content in places.items() if ANSWER.encode() in content] == []


def dump(sidecar: Sidecar) -> bytes:
    """Every key and value of the store, in whichever type it has."""
    path = store_url(load(sidecar.config_path)).removeprefix("unix://")
    with redis.Redis(unix_socket_path=path) as client:
        read: dict[bytes, Any] = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"set": client.smembers,
            b"stream": client.xrange,
            b"list": lambda key: client.lrange(key, 0, -1),
        }
        return b"".join(
            key + repr(read[client.type(key)](key)).encode() for key in client.scan_iter()
        )
