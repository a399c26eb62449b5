"""`responses`, https://platform.openai.com/docs/api-reference/responses/create.

`max_output_tokens` bounds the answer, reasoning included. What stands in the request bounds the
input, unless it leans on what the provider has stored: an earlier response, a conversation, an item
by its id. Then the model's context window does. A stream tells its usage in its last event only
(`response.completed`, `.incomplete`, `.failed`), so usage that was seen is all of it.
"""

from typing import Any

from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.openai.chat import read_images, slot_of_cap
from extauthz.providers.openai.dialect import Dialect, refuse_long_caches, refuse_unknown
from extauthz.providers.openai.tiers import premium, price_contexts
from extauthz.providers.openai.usage import TOKENS_MAX, told_usage
from extauthz.providers.strict_json import (
    parse_object,
    read_count,
    read_flag,
    read_list,
    read_string,
    read_text,
)
from extauthz.providers.text_bound import text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UsageReport

CAP_FIELDS = ("max_output_tokens",)

# All that is bounded by what stands in the request, by the cap, or by the context window. Not here,
# so refused: `background` (answers later), `prompt` (a stored one may name another model and tools
# of the provider), `context_management` and what else samples more than the cap says.
_PARAMETERS = frozenset((
    "background", "conversation", "include", "input", "instructions", "max_output_tokens",
    "max_tool_calls", "metadata", "model", "parallel_tool_calls", "previous_response_id",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning",
    "safety_identifier", "service_tier", "store", "stream", "stream_options", "temperature", "text",
    "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user",
))  # fmt: skip
_STORED = ("previous_response_id", "conversation")
_REASONING = frozenset(("effort", "summary", "generate_summary", "context", "mode"))

# Tools that the client runs; all others run, and bill, at the provider.
_CLIENT_TOOLS = ("function", "custom", "local_shell", "apply_patch")

# Items of the input whose tokens all stand in the request.
_TEXT_ITEMS = (
    "message", "function_call", "function_call_output", "custom_tool_call",
    "custom_tool_call_output", "local_shell_call", "local_shell_call_output", "apply_patch_call",
    "apply_patch_call_output",
)  # fmt: skip
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")
_SOUND_PARTS = ("input_audio", "output_audio")


def read_request(request: Request, dialect: Dialect) -> RequestFacts:
    """The facts of a response."""
    body = request.body
    document = parse_object(body)
    model = read_string(document, "model")
    dialect.refuse_unbounded(model)
    refuse_unknown(document, _PARAMETERS)
    refuse_long_caches(document, body)
    _refuse_unbounded(document)
    kinds = _kinds(document)
    stored = any(document.get(key) is not None for key in _STORED)
    beyond_text = not kinds.issubset(_TEXT_PARTS)
    cap = read_count(document, CAP_FIELDS[0], TOKENS_MAX)
    images = None if stored else read_images(_parts(document), "input_image", _TEXT_PARTS)
    input_tokens = text_tokens_max(body) - (images.sent if images else 0)
    return RequestFacts(
        model=model,
        stream=read_flag(document, "stream"),
        input_tokens_max=None if stored or (beyond_text and not images) else input_tokens,
        images=images.pictures if images else 0,
        output_tokens_cap=cap,
        cache_writes=True,
        media=stored or beyond_text,
        audio=not kinds.isdisjoint(_SOUND_PARTS),
        price_contexts=price_contexts(document, dialect.tiers),
        premium=premium(document),
        cap_slot=slot_of_cap(document, body, CAP_FIELDS[0]),
    )


def read_usage(captured: CapturedResponse, dialect: Dialect) -> UsageReport:
    """The usage of the response: at the root of JSON, in `response` of a stream's last event."""
    return told_usage(
        captured, (dialect.usage_shape[0], "responses"), exact=captured.usage is not None
    )


def _refuse_unbounded(document: dict[str, Any]) -> None:
    """What answers later, runs at the provider, or samples more than once."""
    if read_flag(document, "background"):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "a response in the background tells its usage to nobody who could meter it: "
            "send the call without 'background'",
        )
    for tool in read_list(document, "tools"):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind not in _CLIENT_TOOLS:
            raise RequestError(
                Reason.UNMETERED_ENDPOINT,
                f"a tool of a type other than {', '.join(_CLIENT_TOOLS)} runs at the provider and "
                "cannot be metered: send the call without it",
            )
    read_text(document, "instructions")  # (items, as stored prompts have, could be more than text)
    reasoning = document.get("reasoning")
    if reasoning is None:
        return
    if not isinstance(reasoning, dict):
        raise RequestError(Reason.UNPARSEABLE_BODY, "'reasoning' must be an object")
    refuse_unknown(reasoning, _REASONING)
    if reasoning.get("mode") not in (None, "standard"):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "'reasoning.mode' other than 'standard' thinks more than once and cannot be metered",
        )


def _kinds(document: dict[str, Any]) -> set[str]:
    """The kinds of content parts; "" stands for whatever is not known to be in the request."""
    given = document.get("input")
    if given is None or isinstance(given, str):
        return set()
    if not isinstance(given, list):
        raise RequestError(Reason.UNPARSEABLE_BODY, "'input' must be a text or an array")
    kinds: set[str] = set()
    for item in given:
        kinds |= _kinds_of_item(item)
    return kinds


def _parts(document: dict[str, Any]) -> list[Any]:
    """The parts of every item; of one that is not known to be text, one that is not known."""
    given = document.get("input")
    parts: list[Any] = []
    for item in given if isinstance(given, list) else ():
        kinds = _kinds_of_item(item)
        if kinds.issubset((*_TEXT_PARTS, "input_image")):
            key = "output" if str(item.get("type")).endswith("_output") else "content"
            parts += item.get(key) or () if kinds else ()
        else:
            parts.append(None)
    return parts


def _kinds_of_item(item: Any) -> set[str]:
    if not isinstance(item, dict):
        raise RequestError(Reason.UNPARSEABLE_BODY, "each of 'input' must be an object")
    # Without a type it is a message, or the id of a stored item.
    kind = item.get("type") or ("message" if "role" in item else "")
    if kind == "reasoning":
        # By its id alone the provider looks the text up.
        encrypted = item.get("encrypted_content")
        return set() if isinstance(encrypted, str) and encrypted else {""}
    if kind not in _TEXT_ITEMS:
        return {""}
    content = item.get("output" if str(kind).endswith("_output") else "content")
    if content is None and kind == "message":
        return {""}  # by its id alone the provider looks it up
    if not isinstance(content, list):
        return set() if content is None or isinstance(content, str) else {""}
    return {str(part.get("type")) if isinstance(part, dict) else "" for part in content}
