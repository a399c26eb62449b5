"""`InvokeModel` with the bodies of Amazon's, Meta's and Mistral's own models.

Each is a table of what is known to be bounded, from
https://docs.aws.amazon.com/nova/latest/userguide/complete-request-schema.html,
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-meta.html,
.../model-parameters-titan-text.html, .../model-parameters-titan-embed-text.html,
.../model-parameters-mistral-text-completion.html and
.../model-parameters-mistral-chat-completion.html.

What they used, Bedrock itself has counted: it stands in headers of an answer and, of a stream, in
`amazon-bedrock-invocationMetrics` of its last event. Tokens of a cache are counted beside
`inputTokenCount`, as by `Converse`. (That it counts for Mistral's models too is seen, not
documented: where it does not, the reservation is charged.)
"""

from typing import Any

from extauthz.providers.base import (
    CapSlot,
    CapturedResponse,
    Request,
    RequestError,
    RequestFacts,
)
from extauthz.providers.bedrock import converse
from extauthz.providers.camel_json import known_fields
from extauthz.providers.captured import decode_object
from extauthz.providers.splice import cap_slot, nested_cap_slot
from extauthz.providers.strict_json import parse_object, read_count, read_list
from extauthz.providers.text_bound import text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, UsageReport

NOVA_CAP_FIELDS = converse.CAP_FIELDS
LLAMA_CAP_FIELDS = ("max_gen_len",)
MISTRAL_CAP_FIELDS = ("max_tokens",)
TITAN_CAP_FIELDS = ("textGenerationConfig.maxTokenCount",)

_TOKENS_MAX = 10_000_000

# `reasoningConfig` is not among them: at its highest effort no cap holds.
_NOVA = frozenset(("inferenceConfig", "messages", "schemaVersion", "system", "toolConfig"))
_NOVA_INFERENCE = frozenset(("maxTokens", "stopSequences", "temperature", "topK", "topP"))
_LLAMA = frozenset(("images", "max_gen_len", "prompt", "temperature", "top_p"))
_MISTRAL = frozenset(("max_tokens", "prompt", "stop", "temperature", "top_k", "top_p"))
_MISTRAL_CHAT = frozenset((
    "max_tokens", "messages", "stop", "temperature", "tool_choice", "tools", "top_p",
))  # fmt: skip
_MISTRAL_MESSAGE = frozenset(("content", "name", "role", "tool_call_id", "tool_calls"))
_TITAN = frozenset(("inputText", "textGenerationConfig"))
_TITAN_GENERATION = frozenset(("maxTokenCount", "stopSequences", "temperature", "topP"))
_EMBEDDING = frozenset(("dimensions", "embeddingTypes", "inputText", "normalize"))

_NAMES = {
    "inputTokenCount": "inputTokens",
    "outputTokenCount": "outputTokens",
    "cacheReadInputTokenCount": "cacheReadInputTokens",
    "cacheWriteInputTokenCount": "cacheWriteInputTokens",
}


def read_nova(request: Request, *, stream: bool) -> RequestFacts:
    """A conversation, in nearly the shape that `Converse` has."""
    return converse.read_request(
        request, stream=stream, parameters=_NOVA, inference=_NOVA_INFERENCE
    )


def read_llama(request: Request, *, stream: bool) -> RequestFacts:
    """A prompt, and pictures for the models that see."""
    document = parse_object(request.body)
    known_fields(document, _LLAMA, "the request")
    _must_hold(document, "prompt")
    slot = cap_slot(request.body, "max_gen_len", stands="max_gen_len" in document)
    cap = read_count(document, "max_gen_len", _TOKENS_MAX)
    media = bool(read_list(document, "images"))
    return _facts(request, stream=stream, cap=cap, slot=slot, media=media)


def read_mistral(request: Request, *, stream: bool) -> RequestFacts:
    """A prompt, or messages with functions, and pictures for the models that see."""
    document = parse_object(request.body)
    chats = "messages" in document
    known_fields(document, _MISTRAL_CHAT if chats else _MISTRAL, "the request")
    if not chats:
        _must_hold(document, "prompt")
    for tool in read_list(document, "tools"):
        if known_fields(tool, frozenset(("function", "type")), "a tool").get("type") != "function":
            raise RequestError(Reason.UNMETERED_ENDPOINT, "a tool must be a 'function'")
    parts = _mistral_parts(document)
    slot = cap_slot(request.body, "max_tokens", stands="max_tokens" in document)
    cap = read_count(document, "max_tokens", _TOKENS_MAX)
    return _facts(request, stream=stream, cap=cap, slot=slot, media="image_url" in parts)


def _mistral_parts(document: dict[str, Any]) -> set[str]:
    """The kinds of parts of all messages.

    Raises:
        RequestError: one is neither text nor a picture.
    """
    kinds: set[str] = set()
    for message in read_list(document, "messages"):
        content = known_fields(message, _MISTRAL_MESSAGE, "a message").get("content")
        for part in content if isinstance(content, list) else ():
            kinds.add(str(part.get("type")) if isinstance(part, dict) else "")
    if not kinds.issubset(("text", "image_url")):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT, "content of this type cannot be metered: leave it out"
        )
    return kinds


def read_titan(request: Request, *, stream: bool) -> RequestFacts:
    """A prompt."""
    document = parse_object(request.body, lower_case=False)
    known_fields(document, _TITAN, "the request")
    _must_hold(document, "inputText")
    what = "'textGenerationConfig'"
    config = known_fields(document.get("textGenerationConfig"), _TITAN_GENERATION, what)
    slot = nested_cap_slot(document, request.body, "textGenerationConfig", "maxTokenCount")
    cap = read_count(config, "maxTokenCount", _TOKENS_MAX)
    return _facts(request, stream=stream, cap=cap, slot=slot)


def read_embedding(request: Request) -> RequestFacts:
    """One text."""
    document = parse_object(request.body, lower_case=False)
    known_fields(document, _EMBEDDING, "the request")
    _must_hold(document, "inputText")
    return _facts(request, stream=False, cap=0, bills=("input_mtok",))


def read_usage(captured: CapturedResponse) -> UsageReport:
    """What Bedrock counted of input and output."""
    metrics = decode_object(captured.metrics) or {}
    if type(metrics.get("outputTokenCount")) is not int:
        return UNKNOWN_USAGE
    return read_input_usage(captured)


def read_input_usage(captured: CapturedResponse) -> UsageReport:
    """What it counted where there may be no output."""
    metrics = decode_object(captured.metrics) or {}
    if type(metrics.get("inputTokenCount")) is not int:
        return UNKNOWN_USAGE
    usage = {_NAMES[name]: count for name, count in metrics.items() if name in _NAMES}
    return converse.report_of({"outputTokens": 0, **usage}, captured)


def _facts(
    request: Request,
    *,
    stream: bool,
    cap: int | None,
    slot: CapSlot | None = None,
    media: bool = False,
    bills: tuple[str, ...] = ("input_mtok", "output_mtok"),
) -> RequestFacts:
    assert request.path_model is not None
    return RequestFacts(
        model=request.path_model,
        stream=stream,
        input_tokens_max=None if media else text_tokens_max(request.body),
        output_tokens_cap=cap,
        media=media,
        cap_slot=slot,
        bills=bills,
    )


def _must_hold(document: dict[str, Any], key: str) -> None:
    if not isinstance(document.get(key), str):
        raise RequestError(Reason.UNPARSEABLE_BODY, f"'{key}' must be a string")
