"""OpenAI chat completions (and every server that speaks that API).

Facts from the API reference, https://platform.openai.com/docs/api-reference/chat: `max_tokens` is
the older name of `max_completion_tokens`; `n` answers are each billed up to the cap; a stream
reports usage only with `stream_options.include_usage`, in one more event with `choices: []`;
`service_tier` absent or "auto" may be served, and billed, as another tier.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from extauthz.providers.base import (
    CapSlot,
    CapturedResponse,
    Edit,
    Metering,
    Refusal,
    RequestError,
    RequestFacts,
)
from extauthz.providers.captured import decode_object, decode_string, extract
from extauthz.providers.splice import cap_slot, find_member, insert_member
from extauthz.providers.strict_json import (
    parse_object,
    read_count,
    read_flag,
    read_list,
    read_string,
)
from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

_CHAT = "/v1/chat/completions"
_MODELS = "/v1/models"
_CAP_KEYS = ("max_completion_tokens", "max_tokens")
_TOKENS_MAX = 10_000_000
_ANSWERS_MAX = 128
_PREAMBLE_TOKENS = 1024
"""What the provider may add around tools and response formats, beyond the bytes that were sent."""

_TIERS: tuple[dict[str, str], ...] = (
    {},
    {"service_tier": "default"},
    {"service_tier": "priority"},
    {"service_tier": "fast"},
)
_TEXT_PARTS = ("text", "refusal")
_SILENT_PARTS = (*_TEXT_PARTS, "image_url", "file")
_CLIENT_TOOLS = ("function", "custom")

# Searches, fallbacks to other models and routing are billed by what a request does not bound.
_UNMETERED = (
    "web_search_options", "web_search", "search_parameters", "enable_search", "plugins",
    "models", "fallbacks", "fallback_models", "route", "provider",
)  # fmt: skip
_SEARCHING_MODEL = re.compile(r"-search-(preview|api)|deep-research")
"""These search the web on every call, and each search is billed beside the tokens."""

_PREMIUM_TIERS = ("priority", "fast")
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]*")
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "insufficient_quota",
    503: "server_error",
}


class OpenAIAdapter:
    """`api: openai`."""

    price_provider = "openai"

    def metering(self, method: str, path: str) -> Metering | None:
        """Chat completions are billed, listing models is free, everything else is refused."""
        if method == "POST" and path == _CHAT:
            return Metering.BILLED
        if method == "GET" and (path == _MODELS or _is_one_model(path)):
            return Metering.FREE
        return None

    def read_request(self, path: str, body: bytes) -> RequestFacts:  # noqa: ARG002 - one endpoint so far
        """The facts of a chat completion."""
        document = parse_object(body)
        model = read_string(document, "model")
        stream = read_flag(document, "stream")
        _refuse_unmetered(document, model)
        media, audio = _modalities(document)
        caps = [c for key in _CAP_KEYS if (c := read_count(document, key, _TOKENS_MAX))]
        input_tokens = len(body) + _PREAMBLE_TOKENS
        return RequestFacts(
            model=model,
            stream=stream,
            input_tokens_max=None if media else input_tokens,
            output_tokens_cap=max(caps) if caps else None,
            answers=read_count(document, "n", _ANSWERS_MAX) or 1,
            # Tokens of a prediction that the answer does not use are billed as output too.
            extra_output_tokens=input_tokens if document.get("prediction") is not None else 0,
            cache_writes=True,
            media=media,
            audio=audio,
            price_contexts=_price_contexts(document),
            premium=_premium(document),
            edits=tuple(_usage_edits(document, body)) if stream else (),
            cap_slot=None if caps else _cap_slot(document, body),
        )

    def read_usage(self, captured: CapturedResponse) -> UsageReport:
        """The root-level `usage`; an answer without one is unknown.

        Some servers send a running `usage` with every event: what was seen of an answer that was
        cut is then a lower bound.
        """
        usage = decode_object(captured.usage)
        if usage is None:
            return UNKNOWN_USAGE
        amounts = extract(self.price_provider, "chat", usage)
        if amounts is None or not _adds_up(usage, amounts):
            return UNKNOWN_USAGE
        tier = decode_string(captured.service_tier)
        ended = captured.complete and not captured.error
        return UsageReport(
            Exactness.EXACT if ended else Exactness.LOWER_BOUND,
            amounts,
            decode_string(captured.model),
            {"service_tier": tier} if tier else {},
        )

    def refusal_body(self, refusal: Refusal) -> bytes:
        """`{"error": {message, type, code, param}}`, see the guide to error codes."""
        error = {
            "message": refusal.message,
            "type": _ERROR_TYPES.get(refusal.status, "invalid_request_error"),
            "code": refusal.reason.value,
            "param": None,
            "decision_id": refusal.decision_id,
            **refusal.details,
        }
        return json.dumps({"error": error}).encode()


def _is_one_model(path: str) -> bool:
    """One model's page; nothing that a server could read as a way out of that folder."""
    folder, found, name = path.rpartition("/")
    return bool(found) and folder == _MODELS and _MODEL_ID.fullmatch(name) is not None


def _adds_up(usage: Mapping[str, Any], amounts: dict[str, int]) -> bool:
    """Whether `total_tokens` agrees; what it has beyond the parts is added to the output.

    Some servers leave reasoning out of `completion_tokens`, yet bill it, and it is in the total.
    """
    total = usage.get("total_tokens")
    if total is None:
        return True
    if type(total) is not int:
        return False
    unnamed = total - amounts.get("input_tokens", 0) - amounts.get("output_tokens", 0)
    amounts["output_tokens"] = amounts.get("output_tokens", 0) + max(0, unnamed)
    return 0 <= unnamed <= _TOKENS_MAX


def _refuse_unmetered(document: dict[str, Any], model: str) -> None:
    """Server-side tools and fallback lists bill what a request does not bound."""
    if _SEARCHING_MODEL.search(model.lower()):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "this model searches the web on every call, which cannot be metered: use another one",
        )
    for key in _UNMETERED:
        if document.get(key) is not None:
            raise RequestError(
                Reason.UNMETERED_ENDPOINT, f"'{key}' cannot be metered: send the call without it"
            )
    for tool in read_list(document, "tools"):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind not in _CLIENT_TOOLS:
            raise RequestError(
                Reason.UNMETERED_ENDPOINT,
                "a tool of a type other than 'function' or 'custom' runs at the provider and "
                "cannot be metered: send the call without it",
            )


def _modalities(document: dict[str, Any]) -> tuple[bool, bool]:
    """Whether anything but text goes in or out, and whether sound may."""
    modalities = document.get("modalities")
    if document.get("audio") is not None or modalities not in (None, [], ["text"]):
        return True, True
    kinds: set[Any] = set()
    for message in read_list(document, "messages"):
        if not isinstance(message, dict):
            raise RequestError(Reason.UNPARSEABLE_BODY, "each of 'messages' must be an object")
        content = message.get("content")
        if message.get("audio") is not None or isinstance(content, dict):
            return True, True
        if isinstance(content, list):
            kinds.update(
                str(part.get("type")) if isinstance(part, dict) else "" for part in content
            )
    return bool(kinds.difference(_TEXT_PARTS)), bool(kinds.difference(_SILENT_PARTS))


def _price_contexts(document: dict[str, Any]) -> tuple[dict[str, str], ...]:
    tier = document.get("service_tier")
    if tier is not None and not isinstance(tier, str):
        raise RequestError(Reason.UNPARSEABLE_BODY, "'service_tier' must be a string")
    if tier in ("default", "flex"):
        return ({}, {"service_tier": "default"}, {"service_tier": tier})
    return _TIERS


def _premium(document: dict[str, Any]) -> dict[str, str] | None:
    tier = document.get("service_tier")
    return {"service_tier": tier} if tier in _PREMIUM_TIERS else None


def _usage_edits(document: dict[str, Any], body: bytes) -> Iterator[Edit]:
    """Ask a stream for its usage, changing as few bytes as possible."""
    options = document.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError(Reason.UNPARSEABLE_BODY, "'stream_options' must be an object")
    if options and read_flag(options, "include_usage"):
        return
    if "stream_options" not in document:
        yield insert_member(body, '"stream_options":{"include_usage":true}')
        return
    if options and "include_usage" in options:
        span, text = find_member(body, ("stream_options", "include_usage")), "true"
    elif options:
        span = find_member(body, ("stream_options",))
        assert span is not None
        yield Edit(span.start + 1, 0, '"include_usage":true,')
        return
    else:
        span, text = find_member(body, ("stream_options",)), '{"include_usage":true}'
    assert span is not None, "the parser saw this member, so it stands in the bytes"
    yield Edit(span.start, span.end - span.start, text)


def _cap_slot(document: dict[str, Any], body: bytes) -> CapSlot:
    key = _CAP_KEYS[0]
    return cap_slot(body, key, stands_as_null=key in document)
