"""`chat/completions`: OpenAI's, and that of every server that speaks the API.

Facts from the API reference, https://platform.openai.com/docs/api-reference/chat: `max_tokens` is
the older name of `max_completion_tokens`; `n` answers are each billed up to the cap; a stream
reports usage only with `stream_options.include_usage`, in one more event with `choices: []`;
`service_tier` absent or "auto" may be served, and billed, as another tier.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from extauthz.providers.base import (
    CapSlot,
    CapturedResponse,
    Edit,
    Request,
    RequestError,
    RequestFacts,
)
from extauthz.providers.openai import routing
from extauthz.providers.openai.dialect import (
    CAP_FIELDS,
    TEXT_PARTS,
    Dialect,
    refuse_long_caches,
    refuse_unknown,
)
from extauthz.providers.openai.tiers import premium, price_contexts
from extauthz.providers.openai.usage import TOKENS_MAX, told_usage
from extauthz.providers.splice import cap_slot, find_rooted, insert_member
from extauthz.providers.strict_json import (
    beyond_cap,
    hinted_count,
    parse_object,
    read_count,
    read_flag,
    read_list,
    read_string,
)
from extauthz.providers.text_bound import indent_tokens_max, text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UsageReport

_ANSWERS_MAX = 128

_SILENT_PARTS = (*TEXT_PARTS, "image_url", "file")
_UNREAD = "file"
"""What a member of a message is taken for that is not known: anything but sound."""
_CLIENT_TOOLS = ("function", "custom")

# What a message may have beside its content, all of it text (or `audio`, which is looked at). What
# is not here may be anything, such as the URL of an image.
_MESSAGE = frozenset((
    "audio", "content", "function_call", "name", "prefix", "reasoning", "reasoning_content",
    "reasoning_details", "refusal", "role", "thinking", "tool_call_id", "tool_calls",
))  # fmt: skip

_PLAIN_MESSAGE = _MESSAGE - {"audio"}

# All that is known to be bounded by what stands in the request: by its bytes, the cap, `n`, or a
# rule below. Not here, so refused: searches (`web_search_options`), fallbacks to other models and
# routing (`models`, `route`, `provider`, `plugins`), answers that come later (`deferred`,
# `background`), and whatever the next version of the API brings.
_PARAMETERS = frozenset((
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "messages", "metadata", "modalities", "model", "n",
    "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "response_format",
    "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options",
    "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
))  # fmt: skip


# Of a model that always searches, for a price by the call. `search_type: pro` does so in steps, for
# a higher one: https://docs.perplexity.ai/guides/pro-search-quickstart
_SEARCH = frozenset(("search_context_size", "user_location"))


def read_request(request: Request, dialect: Dialect) -> RequestFacts:
    """The facts of a chat completion."""
    body = request.body
    document = parse_object(body)
    if dialect.routes:
        model, *fallbacks = routing.read_models(document, dialect)
    else:
        model, fallbacks = request.path_model or read_string(document, "model"), []
    stream = read_flag(document, "stream")
    dialect.refuse_unbounded(model)
    if stream:
        dialect.refuse_stream()
    refuse_unknown(document, _known_parameters(dialect.parameters))
    refuse_long_caches(document, body)
    _refuse_server_tools(document)
    search = document.get("web_search_options")
    refuse_unknown(search if isinstance(search, dict) else {}, _SEARCH)
    media, audio, images = False, False, None
    if not _is_plain(document):
        media, audio = _modalities(document, dialect)
        images = None if audio else read_images(_parts(document), "image_url", TEXT_PARTS)
    if dialect.routes and media and not images:
        routing.refuse_unlimited()
    cap, cap_slots = read_cap(document, dialect), _cap_slots(document, body, dialect)
    answers = read_count(document, "n", _ANSWERS_MAX) or 1
    thinking_tokens = _thinking_tokens(document)
    input_tokens = text_tokens_max(body) - (images.sent if images else 0)
    if dialect.indents_tools:
        input_tokens += indent_tokens_max(body, document.get("tools") or document.get("functions"))
    # Tokens of a prediction that the answer does not use are billed as output too.
    predicted = input_tokens if document.get("prediction") is not None else 0
    asks = tuple(usage_edits(document, body)) if stream and dialect.asks_for_usage else ()
    return RequestFacts(
        model=model,
        stream=stream,
        input_tokens_max=None if media and not images else input_tokens,
        images=images.pictures if images else 0,
        output_tokens_cap=cap,
        answers=answers,
        extra_output_tokens=(predicted + beyond_cap(thinking_tokens, cap)) * answers,
        cache_writes=True,
        media=media,
        audio=audio,
        price_contexts=price_contexts(document, dialect.tiers),
        premium=premium(document),
        edits=asks,
        unasked_usage=bool(asks),
        cap_slot=cap_slots[0],
        other_caps=cap_slots[1:],
        thinking_tokens=thinking_tokens,
        input_readings=routing.input_readings(body, (model, *fallbacks)) if dialect.routes else 1,
        fallback_models=tuple(fallbacks),
        price_slot=routing.price_slot(document, body) if dialect.routes else None,
    )


@cache
def _known_parameters(of_dialect: frozenset[str]) -> frozenset[str]:
    return _PARAMETERS | of_dialect


def read_usage(captured: CapturedResponse, dialect: Dialect) -> UsageReport:
    """The root-level `usage`; an answer without one is unknown.

    Some servers send a running `usage` with every event: what was seen of an answer that was cut is
    then a lower bound.
    """
    return told_usage(
        captured,
        dialect.usage_shape,
        exact=captured.complete and not captured.error,
        tells_cost=dialect.tells_cost,
    )


def read_cap(document: dict[str, Any], dialect: Dialect) -> int | None:
    """The client's own cap; None: it named none that the server obeys.

    Of two, which one holds differs from server to server: the larger is the bound.
    """
    caps = {key: read_count(document, key, TOKENS_MAX) for key in CAP_FIELDS}
    if not any(caps[key] for key in dialect.cap_fields):
        return None
    return max(cap for cap in caps.values() if cap)


def slot_of_cap(document: dict[str, Any], body: bytes, key: str) -> CapSlot:
    """Where a cap of this name can be written."""
    return cap_slot(body, key, stands=key in document)


def _cap_slots(document: dict[str, Any], body: bytes, dialect: Dialect) -> tuple[CapSlot, ...]:
    """Where the server looks for a cap, and then wherever else the client named one."""
    named = [key for key in CAP_FIELDS if document.get(key) is not None]
    obeyed = next((key for key in dialect.cap_fields if key in named), dialect.cap_fields[0])
    keys = [obeyed, *(key for key in named if key != obeyed)]
    return tuple(slot_of_cap(document, body, key)._replace(named=document.get(key)) for key in keys)


def _thinking_tokens(document: dict[str, Any]) -> int:
    """What the client lets the model think, where the server takes a number of tokens for that.

    https://openrouter.ai/docs/use-cases/reasoning-tokens has `reasoning.max_tokens`, some servers
    of Anthropic's models its `thinking.budget_tokens`. OpenAI's `reasoning_effort` is no number.
    """
    return max(
        hinted_count(document, "reasoning", "max_tokens"),
        hinted_count(document, "thinking", "budget_tokens"),
    )


def _refuse_server_tools(document: dict[str, Any]) -> None:
    """What runs at the provider bills what a request does not bound."""
    for tool in read_list(document, "tools"):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind not in _CLIENT_TOOLS:
            raise RequestError(
                Reason.UNMETERED_ENDPOINT,
                "a tool of a type other than 'function' or 'custom' runs at the provider and "
                "cannot be metered: send the call without it",
            )


def _is_plain(document: dict[str, Any]) -> bool:
    """Whether nothing but strings goes in or out, as in most calls: then neither is looked at."""
    if document.get("audio") is not None or document.get("modalities") is not None:
        return False
    for message in read_list(document, "messages"):
        if type(message) is not dict or type(message.get("content")) is not str:
            return False
        if not message.keys() <= _PLAIN_MESSAGE:
            return False
    return True


def _modalities(document: dict[str, Any], dialect: Dialect) -> tuple[bool, bool]:
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
        if not _MESSAGE.issuperset(key for key, value in message.items() if value is not None):
            kinds.add(_UNREAD)
        if isinstance(content, list):
            parts = {str(part.get("type")) if isinstance(part, dict) else "" for part in content}
            if dialect.parts is not None and not parts <= dialect.parts:
                raise RequestError(
                    Reason.UNMETERED_ENDPOINT,
                    "a message holds what is read for a fee, which cannot be metered: send "
                    f"nothing but {', '.join(sorted(dialect.parts))}",
                )
            kinds |= parts
    return bool(kinds.difference(TEXT_PARTS)), bool(kinds.difference(_SILENT_PARTS))


class Images(NamedTuple):
    """Pictures in a request: how many, and how many bytes of the body at least are theirs."""

    pictures: int
    sent: int


def read_images(parts: Sequence[Any], kind: str, others: Sequence[str]) -> Images | None:
    """The pictures among parts of a content; None: there are none, or more than pictures and text.

    Their links and their data are no text: what a picture takes, its model says.
    """
    count = sent = 0
    for part in parts:
        found = part.get("type") if isinstance(part, dict) else None
        if found == kind:
            image = part.get("image_url")
            link = image.get("url") if isinstance(image, dict) else image
            count += 1
            sent += len(link) if isinstance(link, str) else 0
        elif found not in others:
            return None
    return Images(count, sent) if count else None


def _parts(document: dict[str, Any]) -> list[Any]:
    """The parts of all contents; of a message that may hold more, one that is not known."""
    parts: list[Any] = []
    for message in read_list(document, "messages"):
        content = message.get("content")
        parts += content if isinstance(content, list) else ()
        if not _MESSAGE.issuperset(key for key, value in message.items() if value is not None):
            parts.append(None)
    return parts


def usage_edits(document: dict[str, Any], body: bytes) -> Iterator[Edit]:
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
        span, text = find_rooted(body, ("stream_options", "include_usage")), "true"
    elif options:
        span = find_rooted(body, ("stream_options",))
        assert span is not None
        yield Edit(span.start + 1, 0, '"include_usage":true,')
        return
    else:
        span, text = find_rooted(body, ("stream_options",)), '{"include_usage":true}'
    assert span is not None, "the parser saw this member, so it stands in the bytes"
    yield Edit(span.start, span.end - span.start, text)
