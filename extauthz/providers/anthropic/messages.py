"""`messages`.

Facts from the API reference, https://docs.claude.com/en/api/messages: `max_tokens` bounds the
answer, thinking included; a stream tells its input side in `message_start` and its output side,
cumulative, in `message_delta`; cache reads and writes are counted beside `input_tokens`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from extauthz.providers.anthropic.server_tools import (
    RESULT_BLOCKS,
    is_server_tool,
    read_server_tools,
)
from extauthz.providers.base import (
    REGIONAL,
    CapturedResponse,
    Request,
    RequestError,
    RequestFacts,
)
from extauthz.providers.captured import decode_object, decode_string, extract
from extauthz.providers.splice import cap_slot
from extauthz.providers.strict_json import (
    beyond_cap,
    hinted_count,
    parse_object,
    read_count,
    read_flag,
    read_list,
    read_string,
)
from extauthz.providers.text_bound import text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

CAP_FIELDS = ("max_tokens",)
_TOKENS_MAX = 10_000_000

_DEFINED_TOOL_TOKENS = 2048
"""More than a tool adds that Anthropic defines: a few bytes in the request, up to 735 tokens in the
prompt (https://docs.claude.com/en/docs/about-claude/pricing#tool-use-pricing)."""

# Tools that the client runs; all others run, and bill, at the provider (see `server_tools`). From
# the tool reference, https://docs.claude.com/en/docs/agents-and-tools/tool-use/overview
_DEFINED_TOOLS = ("bash_2", "text_editor_2", "computer_2", "memory_2")

# All that is known to be bounded by what stands in the request. Others keep state at the provider
# (`thread`), try further models (`fallbacks`), or sample more than the cap says (`compaction`).
_PARAMETERS = frozenset((
    "cache_control", "context_management", "diagnostics", "fallback_credit_token", "inference_geo",
    "max_tokens", "messages", "metadata", "output_config", "output_format", "service_tier",
    "speed", "stop_sequences", "system", "temperature", "thinking", "tool_choice",
    "tools", "top_k", "top_p", "user_profile_id",
))  # fmt: skip
_BILLS, _SEARCHES = ("input_mtok", "output_mtok"), ("web_searches_kcount",)
_TEXT_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")
_MEDIA_BLOCKS = ("image", "document", "search_result", *RESULT_BLOCKS)
_TIERS = (None, "auto", "standard_only")
"""What may be served beside the standard tier is paid for before:
https://docs.claude.com/en/api/service-tiers."""
_HOME_GEO = (None, "global", "not_available")
REGION_GEO = "us"
"""https://platform.claude.com/docs/en/manage-claude/data-residency has no other region."""

_CACHE_MARK = b"cache_control"


def read_request(request: Request) -> RequestFacts:
    """The facts of a message."""
    document = parse_object(request.body)
    model = read_string(document, "model")
    return facts_of(document, request.body, model, stream=read_flag(document, "stream"))


def facts_of(
    document: dict[str, Any],
    body: bytes,
    model: str,
    *,
    stream: bool,
    beside: tuple[str, ...] = ("model", "stream"),
    unnamed_geo: str = REGION_GEO,
) -> RequestFacts:
    """The facts of a message.

    `beside` are the parameters that the caller has read. `unnamed_geo` is where a call may be
    answered that does not say: at Anthropic, wherever its workspace's default is, which costs more.
    """
    _refuse_unmetered(document, _PARAMETERS.union(beside))
    defined_tools = _count_defined_tools(document)
    server_tools = read_server_tools(read_list(document, "tools"))
    kinds = _block_kinds(document)
    media = not kinds.keys() <= set(_TEXT_BLOCKS) or server_tools.rounds > 1
    # (what a server tool brings in is bounded by the context window only)
    is_pictures = kinds.keys() <= {*_TEXT_BLOCKS, "image"} and server_tools.rounds == 1
    images = kinds["image"] if is_pictures else 0
    cap = read_count(document, "max_tokens", _TOKENS_MAX)
    # Below `max_tokens`: https://docs.claude.com/en/docs/build-with-claude/extended-thinking
    thinking_tokens = hinted_count(document, "thinking", "budget_tokens")
    premium = _premium(document)
    place = REGIONAL if (document.get("inference_geo") or unnamed_geo) == REGION_GEO else {}
    contexts = ({}, premium) if premium else ({},)
    return RequestFacts(
        model=model,
        stream=stream,
        input_tokens_max=(
            None
            if media and not images
            else text_tokens_max(body) + defined_tools * _DEFINED_TOOL_TOKENS
        ),
        output_tokens_cap=cap,
        extra_output_tokens=beyond_cap(thinking_tokens, cap) * server_tools.rounds,
        images=images,
        # That the cap holds for all rounds together is not documented.
        answers=server_tools.rounds,
        input_readings=server_tools.rounds,
        bills=_BILLS + _SEARCHES if server_tools.searches else _BILLS,
        counted={"web_searches": server_tools.searches} if server_tools.searches else {},
        # The word may stand there in an escaped spelling; then assume it does.
        cache_writes=_CACHE_MARK in body or b"\\u" in body,
        media=media,
        price_contexts=tuple({**context, **place} for context in contexts),
        premium=premium,
        cap_slot=cap_slot(body, "max_tokens", stands="max_tokens" in document),
        thinking_tokens=thinking_tokens,
    )


def read_usage(captured: CapturedResponse) -> UsageReport:
    """Root-level `usage` of a message; of a stream, `message_start`'s with the last delta's.

    A stream may tell its output more than once, so only the last of one that ended is exact,
    and one whose last does not tell it is not: `message_start` tells the first token only.
    """
    last = decode_object(captured.usage)
    first = decode_object(captured.usage_start)
    if last is None and first is None:
        return UNKNOWN_USAGE
    known = {key: value for key, value in (last or {}).items() if value is not None}
    usage = {**(first or {}), **known}
    amounts = extract("anthropic", "default", _with_cache_total(usage))
    if amounts is None or _cache_parts(amounts) > amounts.get("cache_write_tokens", 0):
        return UNKNOWN_USAGE
    speed = usage.get("speed")
    exact = "output_tokens" in known and captured.complete and not captured.error
    return UsageReport(
        Exactness.EXACT if exact and _is_all_told(usage) else Exactness.LOWER_BOUND,
        amounts,
        decode_string(captured.model),
        {
            **({"speed": speed} if isinstance(speed, str) else {}),
            **(REGIONAL if usage.get("inference_geo") == REGION_GEO else {}),
        },
    )


def _refuse_unmetered(document: dict[str, Any], known: frozenset[str]) -> None:
    """What runs at the provider, or bills at a rate no price list has, is not bounded."""
    if not known.issuperset(key for key, value in document.items() if value is not None):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "the request has a parameter that cannot be metered: send the call without it. "
            f"Those that can: {', '.join(sorted(known))}",
        )
    if document.get("service_tier") not in _TIERS:
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "this 'service_tier' is not known, so neither is its price: send the call without it",
        )
    if any(not edit.startswith("clear_") for edit in _context_edits(document)):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "'context_management' edits other than 'clear_…' sample more than 'max_tokens' says "
            "and cannot be metered: send the call without them",
        )
    if document.get("inference_geo") not in (None, "global", REGION_GEO):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "'inference_geo' other than 'global' and 'us' bills at a rate that is not known",
        )


def _context_edits(document: dict[str, Any]) -> Iterator[str]:
    """The kinds of edits in `context_management`; "" for what is no such thing."""
    management = document.get("context_management")
    if management is None:
        return
    edits = management.get("edits") if isinstance(management, dict) else ""
    if edits is None:
        return
    if not isinstance(edits, list):
        yield ""
        return
    for edit in edits:
        kind = edit.get("type") if isinstance(edit, dict) else None
        yield kind if isinstance(kind, str) else ""


def _count_defined_tools(document: dict[str, Any]) -> int:
    """How many tools Anthropic defines and the client runs; any that nothing bounds is refused.

    A custom tool has no type, null, or "custom".
    """
    kinds = [
        tool.get("type") if isinstance(tool, dict) else False
        for tool in read_list(document, "tools")
        if not is_server_tool(tool)
    ]
    defined = [kind for kind in kinds if kind is not None and kind != "custom"]
    if not all(isinstance(kind, str) and kind.startswith(_DEFINED_TOOLS) for kind in defined):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "a tool that runs at the provider cannot be metered, but for web_search_20250305 and "
            "web_fetch_20250910 with 'max_uses': send the call without it",
        )
    return len(defined)


def _premium(document: dict[str, Any]) -> dict[str, str] | None:
    speed = document.get("speed")
    if speed is not None and not isinstance(speed, str):
        raise RequestError(Reason.UNPARSEABLE_BODY, "'speed' must be a string")
    return None if speed in (None, "standard") else {"speed": speed}


def _with_cache_total(usage: dict[str, Any]) -> dict[str, Any]:
    """The total of cache writes is what is priced; where only its parts are told, their sum."""
    parts = usage.get("cache_creation")
    if usage.get("cache_creation_input_tokens") is not None or not isinstance(parts, dict):
        return usage
    counts = [value for value in parts.values() if type(value) is int]
    return {**usage, "cache_creation_input_tokens": sum(counts)}


def _cache_parts(amounts: Mapping[str, int]) -> int:
    """Cache writes by how long they last: together no more than all of them."""
    return amounts.get("cache_write_5m_tokens", 0) + amounts.get("cache_write_1h_tokens", 0)


def _is_all_told(usage: Mapping[str, Any]) -> bool:
    """Whether the root-level counts are the whole bill.

    Compaction and fallbacks are told in `iterations` only; what another region costs is not known.
    """
    iterations = usage.get("iterations")
    kinds = [
        entry.get("type") if isinstance(entry, dict) else None
        for entry in (iterations if isinstance(iterations, list) else ())
    ]
    is_priced = usage.get("inference_geo") in (*_HOME_GEO, REGION_GEO)
    return is_priced and all(kind == "message" for kind in kinds)


def _block_kinds(document: dict[str, Any]) -> Counter[str]:
    """How many content blocks of each kind there are."""
    system = document.get("system")
    blocks = list(system) if isinstance(system, list) else []
    for message in read_list(document, "messages"):
        if not isinstance(message, dict):
            raise RequestError(Reason.UNPARSEABLE_BODY, "each of 'messages' must be an object")
        content = message.get("content")
        if isinstance(content, list):
            blocks += content
    kinds = Counter(_kind(block) for block in blocks)
    for block in blocks:
        if _kind(block) == "tool_result" and isinstance(block.get("content"), list):
            kinds.update(map(_kind, block["content"]))
    if not kinds.keys() <= {*_TEXT_BLOCKS, *_MEDIA_BLOCKS, "tool_reference"}:
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "a content block of this type (of a server tool, a change of tools, a compaction) "
            "cannot be metered: send the call without it",
        )
    return kinds


def _kind(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    return kind if isinstance(kind, str) else ""
