"""Calls to a sidecar as no SDK makes them, and what the provider behind it received."""

import http.client
import itertools
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sidecar import Sidecar, key_of

from extauthz.sandbox import Sandbox

CHAT, MESSAGES = "/openai/v1/chat/completions", "/anthropic/v1/messages"
GPT, CLAUDE = "gpt-4o-mini", "claude-haiku-4-5"
HELLO: Any = [{"role": "user", "content": "hello"}]
_marks = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it came: header names in lower case, the last of equal names counts."""

    status: int
    headers: dict[str, str]
    body: bytes
    mark: str
    """by which `received` finds the request"""

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]

    @property
    def reason(self) -> str | None:
        return self.headers.get("x-budget-reason")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def headers_of(agent: str) -> dict[str, str]:
    """What every SDK sends: the agent's key, a content type, Anthropic's version."""
    return bearer(key_of(agent)) | {
        "content-type": "application/json",
        "anthropic-version": "2023-06-01",
    }


def send(
    sidecar: Sidecar,
    body: bytes | Iterable[bytes] | None,
    headers: Mapping[str, str],
    *,
    path: str = CHAT,
    method: str = "POST",
    timeout: float = 60,
) -> Answer:
    """One request with exactly these headers and bytes; an iterable is sent in chunks."""
    mark = f"mark-{next(_marks)}"
    host, _, port = sidecar.egress.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    chunked = body is not None and not isinstance(body, bytes)
    # Refused before it was read to its end: the answer is there all the same.
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body, {**headers, "x-mark": mark}, encode_chunked=chunked)
    try:
        response = connection.getresponse()
        return Answer(
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
            mark,
        )
    finally:
        connection.close()


def post(sidecar: Sidecar, agent: str, body: Any, *, path: str = CHAT, **headers: str) -> Answer:
    """A call by an agent; a `body` that is no bytes is written as JSON. `x_y` is header `x-y`."""
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    return send(sidecar, data, headers_of(agent) | extra, path=path)


def chat(**fields: Any) -> dict[str, Any]:
    """A small chat completion."""
    return {"model": GPT, "messages": HELLO, "max_tokens": 50, **fields}


def message(**fields: Any) -> dict[str, Any]:
    """A small message."""
    return {"model": CLAUDE, "messages": HELLO, "max_tokens": 50, **fields}


def received(sandbox: Sandbox, mark: str) -> dict[str, Any] | None:
    """The request with this mark as the provider received it; None: it never did."""
    found = [one for one in sandbox.requests() if one["headers"].get("x-mark") == mark]
    assert len(found) <= 1, f"one call left {len(found)} times"
    return found[0] if found else None
