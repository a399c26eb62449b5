"""No call costs more than its estimate: the whole corpus, and generated requests of every adapter.

What a provider counts is taken at its worst: a token for each byte of every text, some more for
each message, the answers as long as their cap lets them be.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from forms import FORM_TYPE, sound
from hypothesis import given
from hypothesis import strategies as st

from extauthz.pricing import OwnPrice, PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import Edit, Request, RequestFacts
from extauthz.service.capping import edits_with
from extauthz.usage import Exactness, UsageReport

AT_MS = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) * 1000
BOOK = PriceBook([])
CORPUS: list[dict[str, Any]] = [
    entry
    for path in sorted((Path(__file__).parents[1] / "corpus").glob("*.json"))
    for entry in json.loads(path.read_text(), parse_float=Decimal)
]
TOKENS_A_MESSAGE = 16
"""More than the few tokens that any chat template has for a message."""


@dataclass(frozen=True)
class Asked:
    """A call, whatever its API calls the parts."""

    model: str
    texts: Sequence[str] = ("hello",)
    cap: int | None = None
    answers: int = 1
    stream: bool = False
    tool: str | None = None
    """what a function that the client runs is described as"""
    cached: bool = False
    sound: bool = False


def chat(asked: Asked) -> dict[str, Any]:
    messages: list[Any] = [{"role": "user", "content": text} for text in asked.texts]
    if asked.sound:
        sound = {"type": "input_audio", "input_audio": {"data": "UklGRg", "format": "wav"}}
        messages.append({"role": "user", "content": [sound]})
    return {
        "messages": messages,
        "stream": asked.stream,
        "n": asked.answers,
        **({"max_tokens": asked.cap} if asked.cap else {}),
        **({"modalities": ["text", "audio"], "audio": {"voice": "alloy"}} if asked.sound else {}),
        **({"tools": [{"type": "function", "function": _function(asked)}]} if asked.tool else {}),
    }


def responses(asked: Asked) -> dict[str, Any]:
    return {
        "input": [{"role": "user", "content": text} for text in asked.texts],
        "stream": asked.stream,
        **({"max_output_tokens": asked.cap} if asked.cap else {}),
        **({"tools": [{"type": "function", **_function(asked)}]} if asked.tool else {}),
    }


def completions(asked: Asked) -> dict[str, Any]:
    capped = {"max_tokens": asked.cap} if asked.cap else {}
    return {"prompt": list(asked.texts), "n": asked.answers, "stream": asked.stream, **capped}


def messages(asked: Asked) -> dict[str, Any]:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}} if asked.cached else {}
    content = [{"type": "text", "text": text, **mark} for text in asked.texts]
    name, described = "f", asked.tool or ""
    tool = {"name": name, "description": described, "input_schema": {"type": "object"}}
    return {
        "messages": [{"role": "user", "content": content}],
        **({"max_tokens": asked.cap} if asked.cap else {}),
        **({"tools": [tool]} if asked.tool else {}),
    }


def generate(asked: Asked) -> dict[str, Any]:
    config = {"candidateCount": asked.answers} if asked.answers > 1 else {}
    config |= {"maxOutputTokens": asked.cap} if asked.cap else {}
    return {
        "contents": [{"role": "user", "parts": [{"text": text}]} for text in asked.texts],
        **({"generationConfig": config} if config else {}),
        **({"tools": [{"functionDeclarations": [_function(asked)]}]} if asked.tool else {}),
    }


def converse(asked: Asked) -> dict[str, Any]:
    content: list[Any] = [{"text": text} for text in asked.texts]
    if asked.cached:
        content.append({"cachePoint": {"type": "default"}})
    tool = {"toolSpec": {**_function(asked), "inputSchema": {"json": {"type": "object"}}}}
    return {
        "messages": [{"role": "user", "content": content}],
        **({"inferenceConfig": {"maxTokens": asked.cap}} if asked.cap else {}),
        **({"toolConfig": {"tools": [tool]}} if asked.tool else {}),
    }


def cohere(asked: Asked) -> dict[str, Any]:
    return {key: value for key, value in chat(asked).items() if key != "n"}


def hosted(asked: Asked) -> dict[str, Any]:
    return {"anthropic_version": "bedrock-2023-05-31", **messages(asked)}


def llama(asked: Asked) -> dict[str, Any]:
    capped = {"max_gen_len": asked.cap} if asked.cap else {}
    return {"prompt": "\n".join(asked.texts), **capped}


def mistral(asked: Asked) -> dict[str, Any]:
    capped = {"max_tokens": asked.cap} if asked.cap else {}
    if asked.tool is None:
        return {"prompt": "\n".join(asked.texts), **capped}
    messages = [{"role": "user", "content": text} for text in asked.texts]
    tools = [{"type": "function", "function": _function(asked)}]
    return {"messages": messages, "tools": tools, **capped}


def titan(asked: Asked) -> dict[str, Any]:
    config = {"textGenerationConfig": {"maxTokenCount": asked.cap}} if asked.cap else {}
    return {"inputText": "\n".join(asked.texts), **config}


def _function(asked: Asked) -> dict[str, Any]:
    return {"name": "f", "description": asked.tool}


WRITERS: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "chat": chat,
    "responses": responses,
    "completions": completions,
    "messages": messages,
    "generate_content": generate,
    "stream_generate_content": generate,
    "converse": converse,
    "converse_stream": converse,
    "invoke": hosted,
    "invoke_stream": hosted,
    "invoke_nova": converse,
    "invoke_nova_stream": converse,
    "invoke_llama": llama,
    "invoke_llama_stream": llama,
    "invoke_mistral": mistral,
    "invoke_mistral_stream": mistral,
    "invoke_titan": titan,
    "invoke_titan_stream": titan,
    "raw_predict": hosted,
    "stream_raw_predict": hosted,
}
ONE_ANSWER = ("responses", "messages", "converse", "invoke", "raw_predict", "stream_raw_predict")
NAMED_IN_PATH = ("generate_content", "converse", "invoke", "predict", "stream_generate_content")
CAPPED = [
    (api, endpoint.name)
    for api, adapter in ADAPTERS.items()
    for endpoint in adapter.endpoints
    if endpoint.cap_fields
]


def plain_name(endpoint: str) -> str:
    """Of an endpoint that is another one elsewhere, or of an older version."""
    return endpoint.removesuffix("_in_region").removesuffix("_before_2024_09")


def body_of(api: str, endpoint: str, asked: Asked, *, ascii_only: bool = True) -> Request:
    writer = WRITERS[plain_name(endpoint)]
    document = (cohere if api == "cohere" else writer)(asked)
    in_path = any(part in endpoint for part in NAMED_IN_PATH)
    if not in_path:
        document = {"model": asked.model, **document}
    if endpoint == "messages":
        document["stream"] = asked.stream
    if endpoint.endswith("_before_2024_09"):
        document.pop("stream", None)  # it is refused there
    body = json.dumps(document, ensure_ascii=ascii_only).encode()
    return Request(body, asked.model if in_path else None)


def read(api: str, endpoint: str, request: Request) -> RequestFacts:
    return ADAPTERS[api].read_request(endpoint, request)


def test_every_endpoint_that_takes_a_cap_is_written_here():
    assert {plain_name(name) for _, name in CAPPED} == set(WRITERS)


def embedded(text: str, *, seen: bool) -> dict[str, dict[str, Any]]:
    """The body of an embedding, by its endpoint; OpenAI's is written below."""
    picture = [{"inlineData": {"mimeType": "image/png", "data": "eA=="}}] if seen else []
    return {
        "invoke_embedding": {"inputText": text},
        "embed": {"model": "embed-v4.0", "input_type": "search_query", "texts": [text]},
        "embed_content": {"content": {"parts": [{"text": text}, *picture]}},
        "predict": {"instances": [{"content": text}]},
    }


def of_corpus(entry: dict[str, Any]) -> RequestFacts:
    """The tightest request that can have had this usage: a byte for each token of its input."""
    usage: dict[str, int] = entry["usage"]
    asked = Asked(
        entry["model"],
        texts=["x" * usage["input_tokens"]],
        cap=usage.get("output_tokens") or None,
        cached="cache_write_tokens" in usage,
        sound="input_audio_tokens" in usage,
    )
    if entry["endpoint"] in WRITERS:
        return read(
            entry["api"], entry["endpoint"], body_of(entry["api"], entry["endpoint"], asked)
        )
    if entry["endpoint"] == "transcriptions":
        form = Request(sound(asked.model), content_type=FORM_TYPE)
        return read(entry["api"], entry["endpoint"], form)
    bodies = embedded(asked.texts[0], seen="input_image_tokens" in usage)
    if entry["endpoint"] in bodies:
        body = json.dumps(bodies[entry["endpoint"]]).encode()
        return read(entry["api"], entry["endpoint"], Request(body, asked.model))
    field = "prompt" if entry["endpoint"] == "images" else "input"
    body = json.dumps({"model": asked.model, field: asked.texts[0]}).encode()
    return read(entry["api"], entry["endpoint"], Request(body))


DOCUMENTED = [
    entry
    for entry in CORPUS
    # (a search is refused before it is estimated, and OpenRouter tells what it charges itself)
    if entry["nanousd"] is not None
    and "web_searches" not in entry["usage"]
    and entry["api"] != "openrouter"
]


@pytest.mark.parametrize("entry", DOCUMENTED, ids=lambda entry: entry["name"])
def test_no_documented_call_did_cost_more_than_it_would_have_been_estimated_at(entry):
    facts = of_corpus(entry)
    provider = ADAPTERS[entry["api"]].price_provider
    priced = BOOK.find(provider, provider, entry["model"])
    assert priced is not None
    estimate = priced.estimate(facts, AT_MS, None)
    assert entry["nanousd"] <= estimate.nanousd
    assert entry["usage"]["input_tokens"] <= estimate.input_tokens


def test_most_of_the_corpus_is_held_to_its_estimate():
    assert len(DOCUMENTED) >= 0.85 * len(CORPUS)


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(["", "\u2028", "\U0001d54f" * 9, '"max_tokens":7', "\\"]),
    ),
    min_size=1,
    max_size=4,
)
ASKED = st.builds(
    Asked,
    model=st.just("claude-anthropic.m"),  # a name that every endpoint takes
    texts=TEXTS,
    cap=st.none() | st.integers(1, 200_000),
    answers=st.integers(1, 4),
    stream=st.booleans(),
    tool=st.none() | st.text(min_size=1, max_size=60),
    cached=st.booleans(),
)
PRICES = st.decimals("0", "100", places=4)


@pytest.mark.parametrize(("api", "endpoint"), CAPPED)
@given(asked=ASKED, into=PRICES, out=PRICES, part=st.fractions(0, 1), ascii_only=st.booleans())
def test_no_call_costs_more_than_its_estimate_nor_under_a_cap_than_what_is_held_for_that(
    api, endpoint, asked, into, out, part, ascii_only
):
    many = not endpoint.startswith(ONE_ANSWER) and api != "cohere"
    asked = asked if many else replace(asked, answers=1)
    request = body_of(api, endpoint, asked, ascii_only=ascii_only)
    facts = read(api, endpoint, request)
    own = OwnPrice("p", "*", into, out, cache_write=into * 2, max_output_tokens=16_384)
    priced = PriceBook([own]).find("p", ADAPTERS[api].price_provider, asked.model)
    assert priced is not None
    estimate = priced.estimate(facts, AT_MS, None)

    prompts = len(asked.texts) if plain_name(endpoint) == "completions" else 1
    worst = asked.cap or (16_384 if facts.output_tokens_cap is None else facts.output_tokens_cap)
    given_tokens = sum(len(text.encode()) + TOKENS_A_MESSAGE for text in asked.texts)
    given_tokens += len((asked.tool or "").encode())

    def cost_under(cap: int) -> int:
        amounts = {
            "input_tokens": given_tokens,
            "output_tokens": cap * asked.answers * prompts + facts.extra_output_tokens,
        }
        if facts.cache_writes:
            amounts["cache_write_tokens"] = given_tokens
        return priced.cost(UsageReport(Exactness.EXACT, amounts), AT_MS)

    assert cost_under(worst) <= estimate.nanousd
    cap = max(1, int(worst * part))
    assert cost_under(cap) <= estimate.nanousd_under.at(cap)

    # What is written is the cap, and nothing else changes.
    spliced = apply(request.body, edits_with(facts, cap))
    assert read(api, endpoint, replace(request, body=spliced)).output_tokens_cap == cap
    assert without_caps(json.loads(spliced)) == without_caps(json.loads(request.body))


def apply(body: bytes, edits: Sequence[Edit]) -> bytes:
    """As Envoy's Lua does it."""
    for edit in reversed(edits):
        body = body[: edit.offset] + edit.text.encode() + body[edit.offset + edit.dropped :]
    return body


def without_caps(document: Any) -> Any:
    """A body without what a cap, and metering, may change in it."""
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_gen_len",
             "stream_options")  # fmt: skip
    left = {key: value for key, value in document.items() if key not in names}
    for outer, inner in (
        ("generationConfig", "maxOutputTokens"),
        ("inferenceConfig", "maxTokens"),
        ("textGenerationConfig", "maxTokenCount"),
    ):
        config = {key: value for key, value in left.pop(outer, {}).items() if key != inner}
        left |= {outer: config} if config else {}
    return left
