"""Anthropic messages.

Facts from the API reference, https://docs.claude.com/en/api/messages: `max_tokens` bounds the
answer, thinking included; a stream tells its input side in `message_start` and its output side,
cumulative, in `message_delta`; cache reads and writes are counted beside `input_tokens`.
"""

import json
from typing import Any

from extauthz.providers.base import (
    CapSlot,
    CapturedResponse,
    Metering,
    Refusal,
    RequestError,
    RequestFacts,
)
from extauthz.providers.captured import decode_object, decode_string, extract
from extauthz.providers.splice import cap_slot
from extauthz.providers.strict_json import (
    parse_object,
    read_count,
    read_flag,
    read_list,
    read_string,
)
from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

_MESSAGES = "/v1/messages"
_FREE = {
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/v1/models"),
}
_TOKENS_MAX = 10_000_000
_PREAMBLE_TOKENS = 1024
"""More than the documented system prompt for tool use (at most 735 tokens), plus the template."""

# Tools that the client runs; all others run, and bill, at the provider. From the tool reference,
# https://docs.claude.com/en/docs/agents-and-tools/tool-use/overview
_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
_TEXT_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use")
_CACHE_MARK = b"cache_control"
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "api_error",
}


class AnthropicAdapter:
    """`api: anthropic`."""

    price_provider = "anthropic"

    def metering(self, method: str, path: str) -> Metering | None:
        """Messages are billed; counting tokens and listing models are free; the rest is refused."""
        if method == "POST" and path == _MESSAGES:
            return Metering.BILLED
        if (method, path) in _FREE or (method == "GET" and path.startswith("/v1/models/")):
            return Metering.FREE
        return None

    def read_request(self, path: str, body: bytes) -> RequestFacts:  # noqa: ARG002 - one endpoint so far
        """The facts of a message."""
        document = parse_object(body)
        model = read_string(document, "model")
        _refuse_unmetered(document)
        media = _has_media(document)
        cap = read_count(document, "max_tokens", _TOKENS_MAX)
        speed = document.get("speed")
        return RequestFacts(
            model=model,
            stream=read_flag(document, "stream"),
            input_tokens_max=None if media else len(body) + _PREAMBLE_TOKENS,
            output_tokens_cap=cap,
            # The word may stand there in an escaped spelling; then assume it does.
            cache_writes=_CACHE_MARK in body or b"\\u" in body,
            media=media,
            price_contexts=({}, {"speed": speed}) if isinstance(speed, str) else ({},),
            cap_slot=None if cap else _cap_slot(document, body),
        )

    def read_usage(self, captured: CapturedResponse) -> UsageReport:
        """Root-level `usage` of a message; of a stream, `message_start`'s with the last delta's."""
        last = decode_object(captured.usage)
        first = decode_object(captured.usage_start)
        if last is None and first is None:
            return UNKNOWN_USAGE
        known = {key: value for key, value in (last or {}).items() if value is not None}
        usage = {**(first or {}), **known}
        amounts = extract(self.price_provider, "default", usage)
        if amounts is None:
            return UNKNOWN_USAGE
        speed = usage.get("speed")
        return UsageReport(
            Exactness.LOWER_BOUND if last is None else Exactness.EXACT,
            amounts,
            decode_string(captured.model),
            {"speed": speed} if isinstance(speed, str) else {},
        )

    def refusal_body(self, refusal: Refusal) -> bytes:
        """`{"type": "error", "error": {type, message}}`, see https://docs.claude.com/en/api/errors."""
        error = {
            "type": _ERROR_TYPES.get(refusal.status, "invalid_request_error"),
            "message": refusal.message,
            "code": refusal.reason.value,
            **refusal.details,
        }
        body = {"type": "error", "error": error, "request_id": refusal.decision_id}
        return json.dumps(body).encode()


def _refuse_unmetered(document: dict[str, Any]) -> None:
    """What runs at the provider, or bills at a rate no price list has, is not bounded."""
    for key in ("mcp_servers", "container"):
        if document.get(key) is not None:
            raise RequestError(
                Reason.UNMETERED_ENDPOINT, f"'{key}' cannot be metered: send the call without it"
            )
    if document.get("inference_geo") not in (None, "global"):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "'inference_geo' other than 'global' bills at a rate that is not priced yet",
        )
    for tool in read_list(document, "tools"):
        kind = tool.get("type", "custom") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or not kind.startswith(_CLIENT_TOOLS):
            raise RequestError(
                Reason.UNMETERED_ENDPOINT,
                "a server tool runs at the provider and cannot be metered: "
                "send the call without it",
            )


def _has_media(document: dict[str, Any]) -> bool:
    system = document.get("system")
    blocks = list(system) if isinstance(system, list) else []
    for message in read_list(document, "messages"):
        if not isinstance(message, dict):
            raise RequestError(Reason.UNPARSEABLE_BODY, "each of 'messages' must be an object")
        content = message.get("content")
        if isinstance(content, list):
            blocks += content
    return not all(_is_text(block) for block in blocks)


def _is_text(block: Any) -> bool:
    if not isinstance(block, dict):
        return False
    if block.get("type") != "tool_result":
        return block.get("type") in _TEXT_BLOCKS
    content = block.get("content")
    return not isinstance(content, list) or all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    )


def _cap_slot(document: dict[str, Any], body: bytes) -> CapSlot:
    return cap_slot(body, "max_tokens", stands_as_null="max_tokens" in document)
