"""`generateContent` and `streamGenerateContent`, of the Gemini API and of Vertex AI.

Facts from https://ai.google.dev/api/generate-content and
https://ai.google.dev/gemini-api/docs/thinking: `maxOutputTokens` bounds a candidate with its
thoughts, which are billed as output; each event of a stream tells the usage so far.
"""

import json
import re
from dataclasses import replace
from typing import Any

from extauthz.providers.base import (
    CapSlot,
    CapturedResponse,
    Request,
    RequestError,
    RequestFacts,
)
from extauthz.providers.camel_json import each, fields_of, spelling
from extauthz.providers.captured import decode_object, decode_string, extract
from extauthz.providers.gemini.contents import holds_media, model_in_body
from extauthz.providers.gemini.schemas import reference_tokens_max
from extauthz.providers.splice import nested_cap_slot
from extauthz.providers.strict_json import hinted_count, parse_object, read_count
from extauthz.providers.text_bound import text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

CAP_FIELDS = ("generationConfig.maxOutputTokens",)

_TOKENS_MAX = 10_000_000
_CANDIDATES_MAX = 128

# All that is known to be bounded by what stands in the request: not `continuationToken`, nor (of
# Vertex AI) `modelArmorConfig`.
_PARAMETERS = frozenset((
    "cachedContent", "contents", "generationConfig", "labels", "model", "safetySettings",
    "serviceTier", "store", "systemInstruction", "toolConfig", "tools",
))  # fmt: skip
# Not (of Vertex AI) `routingConfig` and `modelConfig`, which let the server choose the model.
_GENERATION = frozenset((
    "audioTimestamp", "candidateCount", "enableEnhancedCivicAnswers", "frequencyPenalty",
    "imageConfig", "logprobs", "maxOutputTokens", "mediaResolution", "presencePenalty",
    "responseJsonSchema", "responseLogprobs", "responseMimeType", "responseModalities",
    "responseSchema", "seed", "speechConfig", "stopSequences", "temperature", "thinkingConfig",
    "topK", "topP",
))  # fmt: skip
_TOOL = frozenset(("functionDeclarations",))
_TOOL_CONFIG = frozenset(("functionCallingConfig", "retrievalConfig"))

# These make pictures and sound; that a cap bounds what those cost is not documented.
_NOT_TEXT = re.compile(r"image|tts|audio|omni|banana")
_UNBOUNDED = re.compile(r"live|deep-research|computer-use")


def read_request(request: Request, *, stream: bool) -> RequestFacts:
    """The facts of a call; which model, the path says."""
    assert request.path_model is not None
    body, model = request.body, request.path_model
    document = parse_object(body, lower_case=False)
    fields = fields_of(document, _PARAMETERS, "the request")
    model_in_body(fields.get("model"), model)
    _refuse_unmetered(fields, model)
    config = fields_of(fields.get("generationConfig"), _GENERATION, "'generationConfig'")
    makes_media = _NOT_TEXT.search(model.lower()) is not None or not _text_only(config)
    media = holds_media(fields.get("contents"), fields.get("systemInstruction"))
    leans_on_more = media or fields.get("cachedContent") is not None
    referred = reference_tokens_max(body, fields.get("tools"), config)
    cap = read_count(config, "maxOutputTokens", _TOKENS_MAX)
    bounded = cap is not None and not makes_media
    return RequestFacts(
        model=model,
        stream=stream,
        input_tokens_max=(
            None if leans_on_more or referred is None else text_tokens_max(body) + referred
        ),
        output_tokens_cap=cap if bounded else None,
        answers=read_count(config, "candidateCount", _CANDIDATES_MAX) or 1,
        media=leans_on_more or makes_media,
        cap_slot=None if makes_media else cap_slot(document, body),
        thinking_tokens=max(
            hinted_count(config, "thinkingConfig", key)
            for key in ("thinkingBudget", "thinking_budget")
        ),
    )


def read_usage(captured: CapturedResponse) -> UsageReport:
    """Root-level `usageMetadata`, of a stream the last, with a count of what came out or of all.

    One count is left out where it is zero, but never both.
    """
    report = read_metadata(captured)
    counts = decode_object(captured.usage) or {}
    if any(counts.get(key) is not None for key in ("candidatesTokenCount", "totalTokenCount")):
        return report
    is_exact = report.exactness is Exactness.EXACT
    return replace(report, exactness=Exactness.LOWER_BOUND) if is_exact else report


def read_metadata(captured: CapturedResponse) -> UsageReport:
    """What `usageMetadata` says, as far as it goes."""
    usage = decode_object(captured.usage)
    if usage is None:
        return UNKNOWN_USAGE
    amounts = extract("google", "default", usage, root="usageMetadata")
    if amounts is None or "input_tokens" not in amounts or not _total_told(usage, amounts):
        return UNKNOWN_USAGE
    exact = captured.complete and not captured.error
    return UsageReport(
        Exactness.EXACT if exact else Exactness.LOWER_BOUND,
        amounts,
        decode_string(captured.model),
    )


def cap_slot(document: dict[str, Any], body: bytes) -> CapSlot:
    """Where `generationConfig.maxOutputTokens` goes: over the client's own, if there is one."""
    outer = spelling(document, "generationConfig") or "generationConfig"
    inner = spelling(document.get(outer) or {}, "maxOutputTokens") or "maxOutputTokens"
    return nested_cap_slot(document, body, outer, inner)


def _refuse_unmetered(fields: dict[str, Any], model: str) -> None:
    """What runs at the provider is billed beside the tokens, or lets more tokens in."""
    for tool in each(fields.get("tools")):
        fields_of(tool, _TOOL, "a tool")
    fields_of(fields.get("toolConfig"), _TOOL_CONFIG, "'toolConfig'")
    if fields.get("serviceTier") not in (None, "standard", "SERVICE_TIER_UNSPECIFIED"):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "the price of this 'serviceTier' is not known: send the call without it",
        )
    if _UNBOUNDED.search(model.lower()):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "what this model does is bounded by no cap, so it cannot be metered: use another one",
        )


def _text_only(config: dict[str, Any]) -> bool:
    modalities = config.get("responseModalities")
    return all(json.dumps(one).strip('"').upper() == "TEXT" for one in each(modalities))


def _total_told(usage: dict[str, Any], amounts: dict[str, int]) -> bool:
    """What `totalTokenCount` has beyond the parts is added to the output: it is billed too.

    A count of zero is left out, as protocol buffers do.
    """
    total = usage.get("totalTokenCount")
    if total is None:
        return True
    if type(total) is not int or not 0 <= total <= 1_000_000_000:
        return False
    unnamed = total - amounts.get("input_tokens", 0) - amounts.get("output_tokens", 0)
    amounts["output_tokens"] = amounts.get("output_tokens", 0) + max(0, unnamed)
    return True
