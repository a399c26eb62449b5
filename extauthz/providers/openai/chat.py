"""`chat/completions`: OpenAI's, and that of every server that speaks the API.

Facts from the API reference, https://platform.openai.com/docs/api-reference/chat: `max_tokens` is
the older name of `max_completion_tokens`; `n` answers are each billed up to the cap; a stream
reports usage only with `stream_options.include_usage`, in one more event with `choices: []`;
`service_tier` absent or "auto" may be served, and billed, as another tier.
"""

import re
from collections.abc import Iterator
from typing import Any

from extauthz.providers.base import (
    CapSlot,
    CapturedResponse,
    Edit,
    Request,
    RequestError,
    RequestFacts,
)
from extauthz.providers.openai.tiers import premium, price_contexts
from extauthz.providers.openai.usage import PREAMBLE_TOKENS, TOKENS_MAX, told_usage
from extauthz.providers.splice import cap_slot, find_member, insert_member
from extauthz.providers.strict_json import (
    parse_object,
    read_count,
    read_flag,
    read_list,
    read_string,
)
from extauthz.reasons import Reason
from extauthz.usage import UsageReport

CAP_FIELDS = ("max_completion_tokens", "max_tokens")
_ANSWERS_MAX = 128

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


def read_request(request: Request) -> RequestFacts:
    """The facts of a chat completion."""
    body = request.body
    document = parse_object(body)
    model = read_string(document, "model")
    stream = read_flag(document, "stream")
    _refuse_unmetered(document, model)
    media, audio = _modalities(document)
    caps = [c for key in CAP_FIELDS if (c := read_count(document, key, TOKENS_MAX))]
    input_tokens = len(body) + PREAMBLE_TOKENS
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
        price_contexts=price_contexts(document),
        premium=premium(document),
        edits=tuple(_usage_edits(document, body)) if stream else (),
        cap_slot=None if caps else _cap_slot(document, body),
    )


def read_usage(captured: CapturedResponse) -> UsageReport:
    """The root-level `usage`; an answer without one is unknown.

    Some servers send a running `usage` with every event: what was seen of an answer that was cut is
    then a lower bound.
    """
    return told_usage(captured, "chat", exact=captured.complete and not captured.error)


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
    key = CAP_FIELDS[0]
    return cap_slot(body, key, stands_as_null=key in document)
