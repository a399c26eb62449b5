"""Google's Gemini API: what bounds a call, and what its answer tells."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import (
    CapturedResponse,
    Refusal,
    Request,
    RequestError,
    RequestFacts,
)
from extauthz.reasons import Reason
from extauthz.usage import Exactness, UsageReport

GEMINI = ADAPTERS["gemini"]
HELLO = [{"role": "user", "parts": [{"text": "hello"}]}]
PRICES = PriceBook([])
AT_MS = 1_780_000_000_000


def read(body: dict[str, Any], endpoint: str = "generate_content") -> RequestFacts:
    model = "gemini-embedding-001" if "embed" in endpoint else "gemini-2.5-flash"
    return GEMINI.read_request(endpoint, Request(json.dumps(body).encode(), model))


def told(usage: dict[str, Any], **captured: Any) -> UsageReport:
    found = GEMINI.endpoint("generate_content")
    assert found is not None
    return found.read_usage(
        CapturedResponse(**{"usage": json.dumps(usage), "complete": True, **captured})
    )


def cost(model: str, report: UsageReport) -> int:
    priced = PRICES.find("gemini", "google", model)
    assert priced is not None
    return priced.cost(report, AT_MS)


@pytest.mark.parametrize(
    ("path", "query", "endpoint"),
    [
        ("/v1beta/models/gemini-2.5-flash:generateContent", "", "generate_content"),
        ("/v1/models/gemini-2.5-flash:streamGenerateContent", "alt=sse", "stream_generate_content"),
        ("/v1beta/models/gemini-2.5-flash:streamGenerateContent", "", "stream_generate_content"),
        ("/v1beta/models/gemini-2.5-flash:countTokens", "", "count_tokens"),
        ("/v1beta/models/gemini-2.5-flash:generateContent", "alt=sse", None),
        ("/v1beta/models/gemini-2.5-flash:generateContent", "key=left", None),
        ("/v1beta/models/gemini-2.5-flash:batchGenerateContent", "", None),
        ("/v1beta/models/gemini-2.5-flash:predict", "", None),
        ("/v1beta/tunedModels/mine:generateContent", "", None),
        ("/v1beta/cachedContents", "", None),
        ("/upload/v1beta/files", "", None),
    ],
)
def test_the_path_names_the_endpoint_and_the_model(path, query, endpoint):
    route = GEMINI.route("POST", path, query)
    assert (route and route.endpoint.name) == endpoint
    assert route is None or route.path_model == "gemini-2.5-flash"


def test_text_is_bounded_by_its_bytes_and_the_answer_by_its_cap_for_each_candidate():
    body = {
        "contents": HELLO,
        "systemInstruction": {"parts": {"text": "Be brief."}},
        "generationConfig": {"maxOutputTokens": 50, "candidateCount": 3},
        "tools": [{"functionDeclarations": [{"name": "f"}]}],
    }
    facts = read(body)
    assert facts.input_tokens_max is not None
    assert facts.input_tokens_max >= len(json.dumps(body))
    assert (facts.output_tokens_cap, facts.answers, facts.media) == (50, 3, False)


@pytest.mark.parametrize("key", ["thinkingBudget", "thinking_budget"])
def test_a_lower_cap_is_written_over_the_clients_own_and_leaves_what_it_may_think(key):
    thinking = {"maxOutputTokens": 5000, "thinkingConfig": {key: 700}}
    body = {"contents": HELLO, "generationConfig": thinking}
    facts = read(body)
    assert facts.cap_slot is not None
    edit = facts.cap_slot.edit(1000)
    text = json.dumps(body)
    assert text[edit.offset : edit.offset + edit.dropped] == "5000"
    assert (edit.text, facts.thinking_tokens) == ("1000", 700)


@pytest.mark.parametrize(
    "part",
    [
        {"inlineData": {"mimeType": "image/png", "data": "AA=="}},
        {"inline_data": {"mimeType": "image/png", "data": "AA=="}},
        {"fileData": {"fileUri": "https://example.com/a"}},
        {"functionResponse": {"name": "f", "parts": [{"inlineData": {}}]}},
        {"text": "", "videoMetadata": {"fps": 9}},
    ],
)
def test_media_is_bounded_by_the_models_context_only(part):
    facts = read({"contents": {"role": "user", "parts": part}})
    assert facts.input_tokens_max is None
    assert facts.media


def test_a_cache_is_bounded_by_the_models_context_only():
    assert read({"contents": HELLO, "cachedContent": "cachedContents/1"}).input_tokens_max is None


@pytest.mark.parametrize("config", [{"responseModalities": ["IMAGE"]}, {"responseModalities": [1]}])
def test_a_cap_on_tokens_is_not_trusted_to_bound_pictures(config):
    config = {**config, "maxOutputTokens": 5}
    facts = read({"contents": HELLO, "generationConfig": config})
    assert facts.output_tokens_cap is None
    assert facts.cap_slot is None
    assert facts.media


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"tools": [{"googleSearch": {}}]}, Reason.UNMETERED_ENDPOINT),
        ({"tools": {"google_search": {}}}, Reason.UNMETERED_ENDPOINT),
        ({"tools": [{"codeExecution": {}}]}, Reason.UNMETERED_ENDPOINT),
        ({"tools": [{"urlContext": {}}]}, Reason.UNMETERED_ENDPOINT),
        ({"tools": [{"functionDeclarations": [], "googleMaps": {}}]}, Reason.UNMETERED_ENDPOINT),
        ({"serviceTier": "priority"}, Reason.UNMETERED_ENDPOINT),
        ({"generationConfig": {"routingConfig": {}}}, Reason.UNMETERED_ENDPOINT),
        ({"GenerationConfig": {}}, Reason.UNMETERED_ENDPOINT),
        ({"contents": [{"parts": [{"nobodyKnows": 1}]}]}, Reason.UNMETERED_ENDPOINT),
        ({"continuationToken": "x"}, Reason.UNMETERED_ENDPOINT),
        ({"generationConfig": {}, "generation_config": {}}, Reason.AMBIGUOUS_BODY),
        (
            {"generationConfig": {"maxOutputTokens": 5, "max_output_tokens": 9}},
            Reason.AMBIGUOUS_BODY,
        ),
        ({"model": "models/gemini-2.5-pro"}, Reason.AMBIGUOUS_BODY),
        ({"generationConfig": {"maxOutputTokens": "5"}}, Reason.UNPARSEABLE_BODY),
        ({"generationConfig": 7}, Reason.UNPARSEABLE_BODY),
        ({"contents": ["hello"]}, Reason.UNPARSEABLE_BODY),
    ],
    ids=str,
)
def test_what_is_not_known_to_be_bounded_is_refused(body, reason):
    with pytest.raises(RequestError) as caught:
        read({"contents": HELLO, **body})
    assert caught.value.reason is reason


CONFIGS = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {}, optional={"temperature": st.just(1), "maxOutputTokens": st.none(), "topK": st.just(2)}
    ),
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "contents": st.just(HELLO),
            "generationConfig": CONFIGS,
            "safetySettings": st.just([{"text": '"generationConfig":{"}'}]),
        },
    ),
    st.sampled_from([None, 1]),
)
def test_a_default_cap_is_written_and_nothing_else_changes(document, indent):
    body = json.dumps(document, indent=indent).encode()
    facts = GEMINI.read_request("generate_content", Request(body, "gemini-2.5-flash"))
    assert facts.cap_slot is not None
    edit = facts.cap_slot.edit(77)
    edited = body[: edit.offset] + edit.text.encode() + body[edit.offset + edit.dropped :]
    config = {**(document.get("generationConfig") or {}), "maxOutputTokens": 77}
    assert json.loads(edited) == {**document, "generationConfig": config}


@pytest.mark.parametrize("field", ["documentOcr", "audio_track_extraction", "somethingNew"])
def test_an_embedding_that_lets_more_in_than_was_sent_is_refused(field):
    config = {"taskType": "RETRIEVAL_QUERY", "outputDimensionality": 64}
    one = {"content": {"parts": [{"text": "a"}]}, "embedContentConfig": config}
    assert read(one, "embed_content").input_tokens_max is not None
    with pytest.raises(RequestError):
        read({**one, "embedContentConfig": {**config, field: True}}, "embed_content")


def test_a_batch_of_embeddings_is_bounded_and_names_one_model():
    one = {"model": "models/gemini-embedding-001", "content": {"parts": [{"text": "a"}]}}
    facts = read({"requests": [one, one]}, "batch_embed_contents")
    assert facts.output_tokens_cap == 0
    assert facts.bills == ("input_mtok",)
    with pytest.raises(RequestError):
        read({"requests": [one, one | {"model": "models/other"}]}, "batch_embed_contents")
    picture = {"content": {"parts": [{"inlineData": {}}]}}
    with pytest.raises(RequestError):
        read({"requests": [picture, picture]}, "batch_embed_contents")


# Answers as documented: https://ai.google.dev/gemini-api/docs/tokens, /thinking and /caching.
TEXT = {"promptTokenCount": 11, "candidatesTokenCount": 73, "totalTokenCount": 84}
THOUGHT = {
    "promptTokenCount": 66, "candidatesTokenCount": 1026, "thoughtsTokenCount": 1512,
    "totalTokenCount": 2604, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 66}],
}  # fmt: skip
CACHED = {
    "promptTokenCount": 696219, "cachedContentTokenCount": 696190, "candidatesTokenCount": 214,
    "totalTokenCount": 696433, "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 696190}],
}  # fmt: skip
HEARD = {
    "promptTokenCount": 201, "candidatesTokenCount": 10, "totalTokenCount": 211,
    "promptTokensDetails": [
        {"modality": "TEXT", "tokenCount": 9}, {"modality": "AUDIO", "tokenCount": 192},
    ],
}  # fmt: skip
BLOCKED = {"promptTokenCount": 7, "totalTokenCount": 7}
USED_TOOLS = {
    "promptTokenCount": 10, "toolUsePromptTokenCount": 90, "candidatesTokenCount": 5,
    "totalTokenCount": 105,
}  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "input_tokens", "output_tokens", "nanousd"),
    [
        (TEXT, 11, 73, 11 * 300 + 73 * 2500),
        (THOUGHT, 66, 1026 + 1512, 66 * 300 + (1026 + 1512) * 2500),
        (CACHED, 696219, 214, 29 * 300 + 696190 * 30 + 214 * 2500),
        (HEARD, 201, 10, 9 * 300 + 192 * 1000 + 10 * 2500),
        (BLOCKED, 7, 0, 7 * 300),
        (USED_TOOLS, 100, 5, 100 * 300 + 5 * 2500),
    ],
    ids=["text", "thoughts", "cache", "sound", "blocked", "tools"],
)
def test_documented_answers_cost_what_the_price_page_says(
    usage, input_tokens, output_tokens, nanousd
):
    report = told(usage, model='"gemini-2.5-flash"')
    assert report.exactness is Exactness.EXACT
    assert report.amounts["input_tokens"] == input_tokens
    assert report.amounts.get("output_tokens", 0) == output_tokens
    assert cost("gemini-2.5-flash", report) == nanousd


def test_what_the_total_has_beyond_its_parts_is_output():
    report = told({"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 40})
    assert report.amounts["output_tokens"] == 30


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"totalTokenCount": 5},
        {"promptTokenCount": "7"},
        {"promptTokenCount": 7, "thoughtsTokenCount": 1.5},
        {"promptTokenCount": 7, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": "1"}]},
        {"promptTokenCount": 7, "promptTokensDetails": {"modality": "AUDIO", "tokenCount": 1}},
        {"promptTokenCount": -7},
        {"promptTokenCount": 7, "totalTokenCount": "x"},
    ],
    ids=str,
)
def test_usage_that_is_odd_is_unknown(usage):
    assert told(usage).exactness is Exactness.UNKNOWN


@pytest.mark.parametrize(
    "usage",
    [{"promptTokenCount": 7}, {**THOUGHT, "totalTokenCount": None, "candidatesTokenCount": None}],
)
def test_without_any_count_of_the_answer_the_rest_is_a_lower_bound(usage):
    """As a client that names the fields of its answer would have it."""
    assert told(usage).exactness is Exactness.LOWER_BOUND


@pytest.mark.parametrize("captured", [{"complete": False}, {"error": True}])
def test_a_stream_that_did_not_end_well_tells_a_lower_bound(captured):
    assert told(TEXT, **captured).exactness is Exactness.LOWER_BOUND


@given(
    st.text(max_size=300),
    st.integers(1, 5000),
    st.integers(1, 3),
    st.sampled_from(["gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.0-flash"]),
    st.data(),
)
def test_no_answer_costs_more_than_its_estimate(text, cap, candidates, model, data):
    config = {"maxOutputTokens": cap, "candidateCount": candidates}
    body = {"contents": [{"parts": [{"text": text}]}], "generationConfig": config}
    raw = json.dumps(body, ensure_ascii=False).encode()
    facts = GEMINI.read_request("generate_content", Request(raw, model))
    prompt = data.draw(st.integers(0, len(text.encode())))
    thoughts = data.draw(st.integers(0, cap))
    usage = {
        "promptTokenCount": prompt,
        "cachedContentTokenCount": data.draw(st.integers(0, prompt)),
        "thoughtsTokenCount": thoughts,
        "candidatesTokenCount": data.draw(st.integers(0, cap * candidates - thoughts)),
    }
    priced = PRICES.find("gemini", "google", model)
    assert priced is not None
    assert priced.estimate(facts, AT_MS, None).nanousd >= priced.cost(told(usage), AT_MS)


def test_a_refusal_is_one_of_googles():
    body = GEMINI.refusal_body(Refusal(429, Reason.BUDGET_EXHAUSTED, "Spent.", "d1", {"a": "b"}))
    error = json.loads(body)["error"]
    assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert error["details"][0]["reason"] == "budget_exhausted"
    assert error["details"][0]["metadata"] == {"decision": "d1", "a": "b"}


def schema_of(levels: int, each: int, **more: Any) -> dict[str, Any]:
    """Definitions of which each refers so many times to the next."""
    definitions = {
        f"d{level}": {
            "type": "object",
            "properties": {f"p{n}": {"$ref": f"#/$defs/d{level + 1}"} for n in range(each)},
        }
        for level in range(levels)
    }
    definitions[f"d{levels}"] = {"type": "string", "description": "the last one"}
    return {"$defs": definitions | more, "$ref": "#/$defs/d0"}


def unrolled(schema: Any, definitions: dict[str, Any]) -> Any:
    """As Google does it: what a reference stands for in its place."""
    if isinstance(schema, list):
        return [unrolled(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return unrolled(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: unrolled(one, definitions) for key, one in schema.items() if key != "$defs"}


@pytest.mark.parametrize(("levels", "each"), [(1, 1), (3, 3), (6, 4), (2, 40)])
@pytest.mark.parametrize("place", ["answer", "function"])
def test_references_in_a_schema_are_bounded_by_what_they_stand_for(place, levels, each):
    schema = schema_of(levels, each)
    if place == "answer":
        body: dict[str, Any] = {"generationConfig": {"responseJsonSchema": schema}}
    else:
        function = {"name": "f", "parametersJsonSchema": schema}
        body = {"tools": [{"functionDeclarations": [function]}]}
    facts = read({"contents": HELLO, **body})
    assert facts.input_tokens_max is not None
    written = len(json.dumps(unrolled(schema, schema["$defs"]), indent=1))
    assert written <= facts.input_tokens_max


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/elsewhere"},
        schema_of(2, 2, d2={"$ref": "#/$defs/d0"}),
        schema_of(70, 1),
        schema_of(60, 9),
        {"properties": {"a": {"$defs": {"d": {}}}, "b": {"$defs": {"d": {"type": "string"}}}}},
        {"ref": "#/defs/d", "defs": {"d": {"any_of": [{"ref": "#/defs/d"}]}}},
    ],
    ids=["itself", "unknown", "a cycle", "a long chain", "beyond all bounds", "twice", "by Vertex"],
)
def test_references_that_nothing_bounds_are_held_at_the_context_window(schema):
    for key in ("responseSchema", "response_json_schema"):
        config = {key: {"description": "a ref", **schema}}
        assert read({"contents": HELLO, "generationConfig": config}).input_tokens_max is None


def test_a_schema_without_references_is_bounded_by_its_bytes():
    plain = read({"contents": HELLO, "generationConfig": {"responseSchema": {"type": "STRING"}}})
    named = read({"contents": HELLO, "generationConfig": {"responseSchema": {"title": "ref__"}}})
    assert plain.input_tokens_max is not None
    assert plain.input_tokens_max == named.input_tokens_max
