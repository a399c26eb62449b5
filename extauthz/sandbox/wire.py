"""What the two provider APIs have in common, seen from the sandbox's server."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from extauthz.sandbox.prices import Model, PriceTable, Usage
from extauthz.sandbox.script import Script


class Refusal(Exception):  # noqa: N818 - an answer of the API, not a fault of the program
    """A request that the provider turns down before any generation."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Call:
    """A valid request, and what it will use."""

    model: Model
    agent: str
    usage: Usage
    capped: bool  # the output was cut off by the request's cap or the model's maximum
    stream: bool
    choices: int = 1
    include_usage: bool = False
    tool: str = "sandbox_tool"
    content_type: str | None = None  # where it is not its wire's
    headers: Mapping[str, str] = field(default_factory=dict)  # of an answer that is no stream


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    data: str
    name: str | None = None

    def encode(self, newline: str) -> bytes:
        """The event on the wire, with its blank line."""
        head = f"event: {self.name}{newline}" if self.name else ""
        return encode(f"{head}data: {self.data}{newline}{newline}")


class Wire(Protocol):
    """One provider's dialect of HTTP and JSON."""

    provider: str
    request_id_header: str
    content_type: str  # of an answer that is no stream
    stream_content_type: str

    def new_request_id(self) -> str:
        """An id as this provider makes them."""

    def authorize(self, headers: Mapping[str, str]) -> None:
        """Refuse a request without the credential that this provider wants."""

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Refuse, or say what the request will use."""

    def answer(self, call: Call, script: Script) -> str:
        """The JSON body of the whole answer."""

    def events(self, call: Call, script: Script) -> list[Event]:
        """The same answer as a stream: the usage comes with the last event but one."""

    def error(self, refusal: Refusal, request_id: str) -> str:
        """The JSON body of an error."""

    def error_event(self, request_id: str) -> Event:
        """An error in the middle of a stream."""

    def model(self, name: str) -> dict[str, Any]:
        """One entry of the list of models."""

    def models(self, names: list[str]) -> dict[str, Any]:
        """The list of models."""


SSE = "text/event-stream; charset=utf-8"


def parse_object(body: bytes) -> dict[str, Any]:
    """A request's body as a JSON object; a key that stands twice counts with its last value."""

    def reject(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=reject)
    except (ValueError, RecursionError):
        raise Refusal(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(value, dict):
        raise Refusal(400, "The JSON body of your request is not an object.")
    return value


def text_tokens(*values: Any) -> int:
    """A fixed count of tokens: a quarter of the UTF-8 bytes of every string, at least one.

    It can never exceed the bytes of the body: JSON writes no text shorter than UTF-8 does.
    """
    size = 0
    stack = list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            size += len(value) if value.isascii() else len(encode(value))
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    return max(1, size // 4)


def whole_number(body: Mapping[str, Any], name: str, *, least: int = 1) -> int | None:
    """An integer field of the request, None where it is left out or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refusal(400, f"{name}: expected an integer", param=name, code="invalid_type")
    if value < least:
        raise Refusal(400, f"{name}: must be at least {least}", param=name, code="invalid_value")
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A boolean field of the request, false where it is left out or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refusal(400, f"{name}: expected a boolean", param=name, code="invalid_type")
    return bool(value)


def pieces(text: str, count: int) -> list[str]:
    """The text in so many parts, as even as they get (empty ones where it is too short)."""
    size = len(text)
    return [text[size * i // count : size * (i + 1) // count] for i in range(count)]


def dumps(value: Any) -> str:
    """JSON as the providers write it: text beyond ASCII is not escaped."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def encode(text: str) -> bytes:
    """UTF-8, always valid: half of a surrogate pair, which JSON can carry, becomes a `?`."""
    return text.encode("utf-8", "replace")


def token(length: int) -> str:
    """A random part for an id."""
    return secrets.token_hex(length // 2 + 1)[:length]
