"""`api: cohere`: https://docs.cohere.com/reference/chat and https://docs.cohere.com/reference/embed.

`usage.billed_units` is what is billed of a chat: less than `usage.tokens`, which counts Cohere's
own prompt too. A stream tells it in `message-end`, under `delta`; an embedding in
`meta.billed_units`.
No answer names its model.
"""

import json
import re
from typing import Any

from extauthz.providers.base import (
    UNBILLED_STATUS,
    Adapter,
    CapturedResponse,
    Refusal,
    Request,
    RequestError,
    RequestFacts,
    billed,
    free,
)
from extauthz.providers.camel_json import known_fields
from extauthz.providers.captured import decode_object, extract
from extauthz.providers.splice import cap_slot
from extauthz.providers.strict_json import (
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

_CAP_FIELDS = ("max_tokens",)
_TOKENS_MAX = 10_000_000

# All that is known to be bounded by what stands in the request.
_PARAMETERS = frozenset((
    "citation_options", "documents", "frequency_penalty", "k", "logprobs", "max_tokens",
    "messages", "model", "p", "presence_penalty", "priority", "response_format", "safety_mode",
    "seed", "stop_sequences", "stream", "strict_tools", "temperature", "thinking", "tool_choice",
    "tools",
))  # fmt: skip
_EMBED_PARAMETERS = frozenset((
    "embedding_types", "input_type", "inputs", "max_tokens", "model", "output_dimension",
    "priority", "texts", "truncate",
))  # fmt: skip
_THINKING_TOKENS_MAX = 32_000
"""The most that a model of Cohere's answers, https://docs.cohere.com/docs/models."""

_NEVER_THINKS = re.compile(
    r"(command(-light|-r|-r-plus|-r7b|-r7b-arabic|-a|-a-vision|-a-translate)?(-[0-9]{2}-[0-9]{4})?"
    r"|c4ai-aya-.*)"
)
"""Any other model may: Command A Reasoning does, and what comes after it."""

_TEXT = ("document", "text", "thinking")


def refusal_body(refusal: Refusal) -> bytes:
    """`{"message"}`, and the reason beside it."""
    body = {"message": refusal.message, "code": refusal.reason.value, **refusal.details}
    return json.dumps({"id": refusal.decision_id, **body}).encode()


def _read_request(request: Request) -> RequestFacts:
    body = request.body
    document = known_fields(parse_object(body), _PARAMETERS, "the request")
    media = _has_media(document)
    if any(
        not isinstance(t, dict) or t.get("type") != "function" for t in read_list(document, "tools")
    ):
        raise RequestError(Reason.UNMETERED_ENDPOINT, "a tool is a function, no other is metered")
    model = read_string(document, "model")
    cap = read_count(document, "max_tokens", _TOKENS_MAX)
    return RequestFacts(
        model=model,
        stream=read_flag(document, "stream"),
        input_tokens_max=None if media else text_tokens_max(body),
        output_tokens_cap=cap,
        extra_output_tokens=_thinking_beside(document, model),
        media=media,
        cap_slot=cap_slot(body, "max_tokens", stands="max_tokens" in document),
        thinking_tokens=hinted_count(document, "thinking", "token_budget"),
    )


def _thinking_beside(document: dict[str, Any], model: str) -> int:
    """What may be thought beside the answer: whether its cap is for both is not documented.

    A model that reasons does so unless it is told not to, without bound unless it is given one, see
    https://docs.cohere.com/docs/reasoning.
    """
    thinking = document.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") == "disabled":
        return 0
    if thinking is None and _NEVER_THINKS.fullmatch(model):
        return 0
    return hinted_count(document, "thinking", "token_budget") or _THINKING_TOKENS_MAX


def _read_usage(captured: CapturedResponse) -> UsageReport:
    usage = decode_object(captured.usage)
    if usage is None or not isinstance(usage.get("billed_units"), dict):
        return UNKNOWN_USAGE
    return _report(extract("cohere", "default", usage), usage["billed_units"], captured)


def _report(
    amounts: dict[str, int] | None, billed_units: dict[str, Any], captured: CapturedResponse
) -> UsageReport:
    if amounts is None:
        return UNKNOWN_USAGE
    # Pictures, searches and classifications are billed otherwise than text.
    others = set(billed_units) - {"input_tokens", "output_tokens", "text_tokens"}
    all_told = not any(billed_units[name] for name in others)
    exact = captured.complete and not captured.error and all_told
    return UsageReport(Exactness.EXACT if exact else Exactness.LOWER_BOUND, amounts)


def _read_embedding(request: Request) -> RequestFacts:
    """The facts of up to 96 texts; pictures have a price of their own, which the list has not."""
    body = request.body
    document = known_fields(parse_object(body), _EMBED_PARAMETERS, "the request")
    texts = list(read_list(document, "texts"))
    for item in read_list(document, "inputs"):
        content = read_list(known_fields(item, frozenset(("content",)), "an input"), "content")
        texts += [_text_of(part) for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(Reason.UNPARSEABLE_BODY, "each of 'texts' must be a text")
    return RequestFacts(
        model=read_string(document, "model"),
        stream=False,
        input_tokens_max=text_tokens_max(body),
        output_tokens_cap=0,
        bills=("input_mtok",),
    )


def _text_of(part: Any) -> Any:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise RequestError(
            Reason.UNMETERED_ENDPOINT, "pictures have no price here: send nothing but text"
        )
    return known_fields(part, frozenset(("text", "type")), "a part").get("text")


def _read_embedding_usage(captured: CapturedResponse) -> UsageReport:
    units = decode_object(captured.usage)
    if units is None:
        return UNKNOWN_USAGE
    amounts = extract("cohere", "embeddings", {"billed_units": units}, root="meta")
    return _report(amounts, units, captured)


def _has_media(document: dict[str, Any]) -> bool:
    kinds = set()
    for message in read_list(document, "messages"):
        content = message.get("content") if isinstance(message, dict) else None
        for block in content if isinstance(content, list) else ():
            kinds.add(str(block.get("type")) if isinstance(block, dict) else "")
    if not kinds.issubset((*_TEXT, "image_url")):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT, "content of this type cannot be metered: leave it out"
        )
    return "image_url" in kinds


COHERE = Adapter(
    price_provider="cohere",
    endpoints=(
        billed("chat", "/v2/chat", _read_request, _read_usage, cap_fields=_CAP_FIELDS),
        billed("embed", "/v2/embed", _read_embedding, _read_embedding_usage),
        free("models", "GET", r"/v1/models(/[A-Za-z0-9][A-Za-z0-9._-]*)?"),
    ),
    refusal_body=refusal_body,
    unbilled_status=UNBILLED_STATUS | {402},
    # Its own for an account at its billing limit, https://docs.cohere.com/reference/errors; after a
    # 429 the SDK asks again.
    exhausted_status=402,
)
