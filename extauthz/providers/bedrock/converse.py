"""`Converse` and `ConverseStream`: one shape for all models.

Facts from https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html:
`inferenceConfig.maxTokens` bounds the answer; tokens read from and written to a cache are counted
beside `inputTokens`; a stream tells its usage in its last event, `metadata`.
"""

from collections.abc import Iterator
from typing import Any

from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.camel_json import known_fields
from extauthz.providers.captured import decode_object, extract
from extauthz.providers.splice import nested_cap_slot
from extauthz.providers.strict_json import (
    beyond_cap,
    hinted_count,
    parse_object,
    read_count,
    read_list,
)
from extauthz.providers.text_bound import indent_tokens_max, text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

CAP_FIELDS = ("inferenceConfig.maxTokens",)

_TOKENS_MAX = 10_000_000

# All that is known to be bounded by what stands in the request: not `guardrailConfig`, which is
# billed beside the tokens, nor `promptVariables` of a prompt that is stored.
_PARAMETERS = frozenset((
    "additionalModelRequestFields", "additionalModelResponseFieldPaths", "inferenceConfig",
    "messages", "outputConfig", "performanceConfig", "requestMetadata", "serviceTier", "system",
    "toolConfig",
))  # fmt: skip
_INFERENCE = frozenset(("maxTokens", "stopSequences", "temperature", "topP"))
# A model's own fields may hold another cap, or tools of its maker.
_ADDITIONAL = frozenset(("reasoning_config", "thinking", "top_k"))
_TEXT = frozenset((
    "cachePoint", "citationsContent", "reasoningContent", "text", "toolResult", "toolUse",
))  # fmt: skip
_MEDIA = frozenset(("audio", "document", "image", "searchResult", "video"))
_TOOL = frozenset(("cachePoint", "toolSpec"))
_RESULT = _MEDIA | {"json", "text"}


def read_request(
    request: Request,
    *,
    stream: bool,
    parameters: frozenset[str] = _PARAMETERS,
    inference: frozenset[str] = _INFERENCE,
) -> RequestFacts:
    """The facts of a conversation; which model, the path says."""
    assert request.path_model is not None
    body = request.body
    document = parse_object(body, lower_case=False)
    known_fields(document, parameters, "the request")
    config = known_fields(document.get("inferenceConfig"), inference, "'inferenceConfig'")
    additional = document.get("additionalModelRequestFields")
    known_fields(additional, _ADDITIONAL, "'additionalModelRequestFields'")
    tools = read_list(_object(document, "toolConfig"), "tools")
    for tool in tools:
        known_fields(tool, _TOOL, "a tool")
    _refuse_dearer(document)
    media = _has_media(document)
    cap = read_count(config, "maxTokens", _TOKENS_MAX)
    thinking_tokens = max(
        hinted_count(additional, key, "budget_tokens") for key in ("thinking", "reasoning_config")
    )
    # (Claude and Nova have no such template)
    indents = 0 if _is_of_a_known_maker(request.path_model) else indent_tokens_max(body, tools)
    return RequestFacts(
        model=request.path_model,
        stream=stream,
        input_tokens_max=None if media else text_tokens_max(body) + indents,
        output_tokens_cap=cap,
        extra_output_tokens=beyond_cap(thinking_tokens, cap),
        cache_writes=_may_write_a_cache(body, request.path_model),
        media=media,
        cap_slot=nested_cap_slot(document, body, "inferenceConfig", "maxTokens"),
        thinking_tokens=thinking_tokens,
    )


def read_usage(captured: CapturedResponse) -> UsageReport:
    """Root-level `usage`, of a stream that of `metadata`."""
    usage = decode_object(captured.usage)
    return UNKNOWN_USAGE if usage is None else report_of(usage, captured)


def report_of(usage: dict[str, Any], captured: CapturedResponse) -> UsageReport:
    """What a `TokenUsage` says, if the answer has come to its end."""
    amounts = extract("aws", "default", usage)
    total = usage.get("totalTokens")
    if amounts is None or (total is not None and type(total) is not int):
        return UNKNOWN_USAGE
    unnamed = (total or 0) - amounts.get("input_tokens", 0) - amounts.get("output_tokens", 0)
    amounts["output_tokens"] = amounts.get("output_tokens", 0) + max(0, unnamed)
    exact = captured.complete and not captured.error
    return UsageReport(Exactness.EXACT if exact else Exactness.LOWER_BOUND, amounts)


def _may_write_a_cache(body: bytes, model: str) -> bool:
    """Whether writing a cache can be billed: at a mark, and of other makers' models without one.

    OpenAI's write theirs at every call, for 1.25 times the input:
    https://platform.openai.com/docs/guides/prompt-caching. Claude and Nova do so where they are
    told to: https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html.
    """
    # The word may stand there in an escaped spelling; then assume it does.
    marked = b"cachePoint" in body or b"\\u" in body
    return marked or not _is_of_a_known_maker(model)


def _is_of_a_known_maker(model: str) -> bool:
    return any(maker in model for maker in ("anthropic.", "amazon."))


def _refuse_dearer(document: dict[str, Any]) -> None:
    """Faster ways to be served have prices that no list has."""
    latency = _object(document, "performanceConfig").get("latency")
    tier = _object(document, "serviceTier").get("type")
    if latency not in (None, "standard") or tier not in (None, "default"):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "the price of this 'performanceConfig' or 'serviceTier' is not known: send the call "
            "without it",
        )


def _has_media(document: dict[str, Any]) -> bool:
    media = False
    for block in _blocks(document):
        fields = known_fields(block, _TEXT | _MEDIA, "a content block")
        media |= not _MEDIA.isdisjoint(fields)
        for result in read_list(_object(fields, "toolResult"), "content"):
            media |= not _MEDIA.isdisjoint(known_fields(result, _RESULT, "a tool's result"))
    return media


def _blocks(document: dict[str, Any]) -> Iterator[Any]:
    yield from read_list(document, "system")
    for message in read_list(document, "messages"):
        fields = known_fields(message, frozenset(("content", "role")), "a message")
        yield from read_list(fields, "content")


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    if value is not None and not isinstance(value, dict):
        raise RequestError(Reason.UNPARSEABLE_BODY, f"'{key}' must be an object")
    return value or {}
