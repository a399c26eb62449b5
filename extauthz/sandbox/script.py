"""What the sandbox is told to do with a call: by `x-sandbox-*` headers, or by set defaults."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

HEADER_PREFIX = "x-sandbox-"

ENDINGS = frozenset(
    {
        "normal",
        "no-usage",  # whole, but without any usage field
        "reset",  # half of the body, then a TCP reset
        "stall",  # half of the body, then silence until the client leaves
        "no-final-blank-line",  # a stream that ends right after the line that carries the usage
        "error-event",  # half of the events, then the provider's error event, then the end
        "truncate-headers",  # the connection closes before the response's headers
    }
)

_CHOICES = {
    "ending": ENDINGS,
    "newline": frozenset({"lf", "crlf"}),
    "content_encoding": frozenset({"identity", "gzip"}),
    "delta_usage": frozenset({"full", "output"}),
}


class ScriptError(ValueError):
    """A setting that the sandbox does not know, or a value that it cannot follow."""


@dataclass(frozen=True, slots=True)
class Script:
    """How one call goes. Each field is a header too: `output_tokens` is `x-sandbox-output-tokens`.

    Attributes:
        agent: On whose bill the call goes, where the API has no field that says so.
        input_tokens: Of the prompt; None counts the request's text. OpenAI's cached tokens are
            part of them, Anthropic's cache tokens come on top.
        output_tokens: Of each choice, before the cap that the request names.
        reasoning_tokens: The part of the output that is reasoning.
        web_searches: How often the model searches, where the request has the tool.
        web_fetches: How often it fetches a page, likewise.
        latency_ms: From the start of generation to the response's headers.
        status: Other than 200, the provider's error of that status is answered.
        billed_error: Such an error is billed like a whole call.
        tool_input: Raw JSON of an object: the answer is a tool call with this input.
        pad_bytes: Size of the content, in place of `response_text`.
        always_usage: A stream ends with its usage whether or not it was asked for, and one that
            asks is refused: so do some that speak OpenAI's API.
        delta_usage: Whether Anthropic's message_delta repeats the input side of the usage.
    """

    agent: str = ""
    input_tokens: int | None = None
    output_tokens: int = 16
    cached_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    web_searches: int = 0
    web_fetches: int = 0
    latency_ms: int = 0
    chunk_delay_ms: int = 0
    chunks: int = 4
    status: int = 200
    billed_error: bool = False
    ending: str = "normal"
    response_text: str = "This answer was made in a sandbox."
    tool_input: str | None = None
    pad_bytes: int | None = None
    newline: str = "lf"
    content_encoding: str = "identity"
    delta_usage: str = "full"
    always_usage: bool = False

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """A copy with some settings changed; None brings back a setting's first value.

        Raises:
            ScriptError: a name or a value that means nothing here.
        """
        return replace(self, **{name: _read(name, value) for name, value in settings.items()})

    def with_headers(self, headers: Iterable[tuple[str, str]]) -> Self:
        """A copy with the settings that a request's `x-sandbox-*` headers name."""
        settings = {
            name[len(HEADER_PREFIX) :].lower().replace("-", "_"): value
            for name, value in headers
            if name[: len(HEADER_PREFIX)].lower() == HEADER_PREFIX
        }
        return self.with_settings(settings) if settings else self

    @property
    def content(self) -> str:
        """The text of the answer."""
        return self.response_text if self.pad_bytes is None else "x" * self.pad_bytes


_DEFAULTS = {field.name: field.default for field in fields(Script)}


def _read(name: str, value: Any) -> Any:
    if name not in _DEFAULTS:
        known = ", ".join(sorted(_DEFAULTS))
        raise ScriptError(f"{name}: no such setting of the sandbox, there are {known}")
    if value is None:
        return _DEFAULTS[name]
    if name in ("response_text", "agent"):
        return str(value)
    if name == "tool_input":
        return _read_tool_input(value)
    if choices := _CHOICES.get(name):
        if value not in choices:
            raise ScriptError(f"{name}: {value!r} is none of {', '.join(sorted(choices))}")
        return value
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise ScriptError(f"{name}: {value!r} is not a whole number") from None
    if number < (1 if name == "chunks" else 0):
        raise ScriptError(f"{name}: {number} is too small")
    return bool(number) if isinstance(_DEFAULTS[name], bool) else number


def _read_tool_input(value: Any) -> str:
    # A string is kept byte for byte: duplicate keys and odd spacing are what forgers use.
    raw = value if isinstance(value, str) else json.dumps(value)
    try:
        is_object = isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise ScriptError("tool_input: not a JSON object")
    return raw
