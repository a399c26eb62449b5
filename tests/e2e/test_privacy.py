"""Prompts and completions are nowhere in what the system writes: every provider, every ending."""

import http.client
import json
import socket
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from calls import CHAT, MESSAGES, Answer, chat, headers_of, message, post, send
from outages import frozen, spool_files
from servers import until
from sidecar import Sidecar, agent, key_of, running_sidecar

from extauthz.config import load
from extauthz.sandbox.app import DEFAULT_GOOGLE_KEY
from extauthz.sandbox.sigv4 import ACCESS_KEY_ID, SECRET_ACCESS_KEY
from extauthz.server.store_url import store_url

PROMPT, ANSWER = "zebra-prompt-7f3a", "zebra-answer-91c2"
SAID: Any = [{"role": "user", "content": PROMPT}]
PARTS = {"contents": [{"parts": [{"text": PROMPT}]}]}
TOOL = {"name": "weather", "description": PROMPT, "parameters": {"type": "object", "title": PROMPT}}
GOOGLE = "models/gemini-2.5-flash"
VERTEX = f"/vertex/v1/projects/p/locations/us-central1/publishers/google/{GOOGLE}"
VERTEX_CLAUDE = (
    "/vertex/v1/projects/p/locations/us-east5/publishers/anthropic/models/claude-haiku-4-5@20251001"
)
CLAUDE_AT_AWS = "/bedrock/model/global.anthropic.claude-haiku-4-5-20251001-v1:0"
NOVA = "/bedrock/model/amazon.nova-micro-v1:0"
COHERE = {"model": "command-a-03-2025", "messages": SAID}
CONVERSE = {
    "messages": [{"role": "user", "content": [{"text": PROMPT}]}],
    "system": [{"text": PROMPT}],
    "inferenceConfig": {"maxTokens": 50},
}
ELSEWHERE = {"max_tokens": 50, "messages": SAID, "system": PROMPT}
AT_AWS = {"anthropic_version": "bedrock-2023-05-31", **ELSEWHERE}
AT_GOOGLE = {"anthropic_version": "vertex-2023-10-16", **ELSEWHERE}
EMBEDDED = {"content": {"parts": [{"text": PROMPT}]}}
RESPONSES = {"model": "gpt-4o-mini", "input": PROMPT, "instructions": PROMPT}
DEPLOYED = "/azure/openai/deployments/my-gpt/chat/completions?api-version=2025-01-01-preview"

METERED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, chat(messages=SAID, tools=[{"type": "function", "function": TOOL}])),
    "chat, a stream": (CHAT, chat(messages=SAID, stream=True)),
    "chat, a stream that asks": (
        CHAT,
        chat(messages=SAID, stream=True, stream_options={"include_usage": True}),
    ),
    "responses": ("/openai/v1/responses", RESPONSES),
    "responses, a stream": ("/openai/v1/responses", RESPONSES | {"stream": True}),
    "completions": (
        "/openai/v1/completions",
        {"model": "gpt-3.5-turbo-instruct", "prompt": PROMPT},
    ),
    "embeddings": (
        "/openai/v1/embeddings",
        {"model": "text-embedding-3-small", "input": [PROMPT]},
    ),
    "messages": (MESSAGES, message(messages=SAID)),
    "messages, a stream": (MESSAGES, message(messages=SAID, stream=True, system=PROMPT)),
    "azure": (DEPLOYED, chat(messages=SAID)),
    "azure, a stream": (DEPLOYED, chat(messages=SAID, stream=True)),
    "gemini": (f"/gemini/v1beta/{GOOGLE}:generateContent", PARTS),
    "gemini, events": (f"/gemini/v1beta/{GOOGLE}:streamGenerateContent?alt=sse", PARTS),
    "gemini, a list": (f"/gemini/v1beta/{GOOGLE}:streamGenerateContent", PARTS),
    "vertex": (f"{VERTEX}:generateContent", PARTS),
    "vertex, a stream": (f"{VERTEX}:streamGenerateContent?alt=sse", PARTS),
    "vertex, claude": (f"{VERTEX_CLAUDE}:rawPredict", AT_GOOGLE),
    "vertex, claude, a stream": (
        f"{VERTEX_CLAUDE}:streamRawPredict",
        AT_GOOGLE | {"stream": True},
    ),
    "cohere": ("/cohere/v2/chat", COHERE),
    "cohere, a stream": ("/cohere/v2/chat", COHERE | {"stream": True}),
    "bedrock": (f"{NOVA}/converse", CONVERSE),
    "bedrock, a stream": (f"{NOVA}/converse-stream", CONVERSE),
    "bedrock, claude": (f"{CLAUDE_AT_AWS}/invoke", AT_AWS),
    "bedrock, claude, a stream": (f"{CLAUDE_AT_AWS}/invoke-with-response-stream", AT_AWS),
}

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "an unknown model": (CHAT, chat(messages=SAID, model="no-such-model")),
    "a model's name": (CHAT, chat(model=PROMPT)),
    "a model's name in a path": (f"/gemini/v1beta/models/{PROMPT}:generateContent", PARTS),
    "a model's name at Bedrock": (f"/bedrock/model/{PROMPT}/converse", CONVERSE),
    "a deployment": (
        f"/azure/openai/deployments/{PROMPT}/chat/completions?api-version=2025-01-01-preview",
        chat(),
    ),
    "a model that has a price, and more": (CHAT, chat(model=f"gpt-4o-mini {PROMPT} and so on")),
    "an unknown field": (CHAT, chat(messages=SAID, **{PROMPT: 1})),
    "a wrong type": (CHAT, chat(messages=SAID, max_tokens=PROMPT)),
    "a tool that runs at the provider": (
        "/openai/v1/responses",
        {**RESPONSES, "tools": [{"type": PROMPT}]},
    ),
    "an unknown path": (f"/openai/v1/{PROMPT}", chat()),
    "no provider": (f"/{PROMPT}/v1", chat()),
    "a query": (f"{CHAT}?q={PROMPT}", chat()),
}
ENDINGS: list[dict[str, str]] = [
    {"x-sandbox-ending": "no-usage"},
    {"x-sandbox-ending": "reset"},
    {"x-sandbox-ending": "error-event"},
    {"x-sandbox-ending": "truncate-headers"},
    {"x-sandbox-status": "400"},
    {"x-sandbox-status": "500"},
    {"x-sandbox-status": PROMPT},  # the sandbox's error quotes it
    {"x-sandbox-tool-input": json.dumps({"city": ANSWER, ANSWER: {"usage": ANSWER}})},
]
BROKEN = [
    f'{{"model":"gpt-4o-mini","{PROMPT}":1,"{PROMPT}":2}}'.encode(),
    f'{{"model":"gpt-4o-mini","messages":[{{"content":"{PROMPT}'.encode() + b'\xff"}]}',
    PROMPT.encode(),
]
SAID_BESIDE = {"user-agent": PROMPT, "referer": f"http://{PROMPT}/", "x-request-id": PROMPT}


@pytest.fixture(scope="module")
def used() -> Iterator[Sidecar]:
    agents = agent("bot", "1000.00") | agent("poor", "0.000001")
    agents |= agent("narrow", models={"allow": ["o1"]})
    with running_sidecar(agents=agents, start=False) as running:
        running.env["SANDBOX_GOOGLE_CREDENTIAL"] = DEFAULT_GOOGLE_KEY
        running.env["AWS_ACCESS_KEY_ID"] = ACCESS_KEY_ID
        running.env["AWS_SECRET_ACCESS_KEY"] = SECRET_ACCESS_KEY
        openai = running.config["providers"]["openai"]
        google = {**openai, "credential": {"env": "SANDBOX_GOOGLE_CREDENTIAL"}}
        running.config["providers"] |= {
            "azure": {**openai, "api": "azure", "deployments": {"my-gpt": "gpt-4o-mini"}},
            "cohere": {**openai, "api": "cohere"},
            "gemini": {**google, "api": "gemini"},
            "vertex": {**google, "api": "vertex"},
            "bedrock": {**openai, "api": "bedrock", "credential": {"aws_region": "us-east-1"}},
        }
        running.start()
        use(running)
        yield running


def use(sidecar: Sidecar) -> None:
    # (in one chunk, or no event of a stream would hold the whole marker)
    said = {"x-sandbox-response-text": ANSWER, "x-sandbox-chunks": "1", **SAID_BESIDE}
    for name, (path, body) in METERED.items():
        answer = call(sidecar, path, body, said)
        assert answer.status == 200, (name, answer.body)
        assert name == "embeddings" or holds(answer.body, ANSWER), name
    for name, (path, body) in REFUSED.items():
        answer = call(sidecar, path, body, said)
        assert answer.status in (400, 403), (name, answer.body)
    # Each ending of a body and of a stream, and the provider's own errors of each provider.
    endings = ("chat", "chat, a stream", "messages, a stream", "bedrock, a stream")
    for name, (path, body) in METERED.items():
        for ending in ENDINGS if name in endings else ENDINGS[-2:]:
            with suppress(http.client.HTTPException, ConnectionError):
                call(sidecar, path, body, said | ending)
    for data in BROKEN:
        post(sidecar, "bot", data)
    post(sidecar, "poor", METERED["chat"][1])
    post(sidecar, "narrow", chat(model=PROMPT))
    post(sidecar, "nobody", METERED["chat"][1])
    post(sidecar, "bot", METERED["chat"][1], x_sandbox_status="400", x_api_key=PROMPT)
    sidecar.until_settled()


def call(sidecar: Sidecar, path: str, body: dict[str, Any], more: dict[str, str]) -> Answer:
    return send(sidecar, json.dumps(body).encode(), headers_of("bot") | more, path=path)


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
    for path in ("/stats", "/clusters", "/config_dump", "/certs", "/server_info"):
        yield f"Envoy's {path}", envoys(sidecar, path)


def envoys(sidecar: Sidecar, path: str) -> bytes:
    """What Envoy's admin interface answers."""
    connection = http.client.HTTPConnection("envoy", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(sidecar.data_dir / "run" / "envoy.sock"))
    connection.request("GET", path)
    try:
        return connection.getresponse().read()
    finally:
        connection.close()


def holds(content: bytes, marker: str) -> bool:
    """Whether the marker is in there, as it is or in base64 (so Bedrock sends a model's events)."""
    if marker.encode() in content:
        return True
    # Where it begins in a group of three bytes, only what stands in whole groups is sure.
    spellings = (b64encode(b"." * skip + marker.encode())[4:-4] for skip in range(3))
    return any(spelling in content for spelling in spellings)


def places_with(marker: str, places: dict[str, bytes]) -> list[str]:
    return [Path(place).name for place, content in places.items() if holds(content, marker)]


def test_no_prompt_and_no_completion_is_in_anything_written(used: Sidecar) -> None:
    archived = used.data_dir / "books"
    until(lambda: any(path.stat().st_size for path in archived.rglob("*") if path.is_file()))
    places = dict(written(used)) | {"store": dump(used)}

    assert len(places["store"]) > 1000
    for expected in ("appendonly", "access_log.jsonl", "envoy.log", "metrics", "Envoy's /stats"):
        assert any(expected in place for place in places), expected
    assert places_with("gpt-4o-mini", places), "the search finds what is there"
    assert places_with(PROMPT, places) == []
    assert places_with(ANSWER, places) == []


def test_what_waits_on_disk_for_the_store_has_neither_a_prompt_nor_a_key(used: Sidecar) -> None:
    """The access log's entries have the path with its query, and all that filters found out."""
    query = f"alt=sse&key={key_of('bot')}"
    path = f"/gemini/v1beta/{GOOGLE}:streamGenerateContent?{query}"
    script = {"x-sandbox-response-text": ANSWER, "x-sandbox-chunk-delay-ms": "500", **SAID_BESIDE}
    headers = {"content-type": "application/json", **script}
    with ThreadPoolExecutor() as pool:
        under_way = pool.submit(send, used, json.dumps(PARTS).encode(), headers, path=path)
        until(lambda: used.standing()["open_reservations"] == 1)
        with frozen(used, "store"):
            assert under_way.result().status == 200
            until(lambda: b"gemini-2.5-flash" in spooled(used))
            waiting = spooled(used)
    used.until_settled()

    for marker in (PROMPT, ANSWER, key_of("bot"), "alt=sse"):
        assert not holds(waiting, marker), marker
    assert places_with(key_of("bot"), dict(written(used)) | {"store": dump(used)}) == []


def spooled(sidecar: Sidecar) -> bytes:
    return b"".join(file.read_bytes() for file in spool_files(sidecar))


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
