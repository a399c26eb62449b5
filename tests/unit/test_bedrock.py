"""AWS Bedrock: what bounds a call, and what its answer tells."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.identity import CredentialError, read_credential
from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.reasons import Reason
from extauthz.usage import Exactness, UsageReport

BEDROCK = ADAPTERS["bedrock"]
CLAUDE = "global.anthropic.claude-haiku-4-5-20251001-v1:0"
HELLO = [{"role": "user", "content": [{"text": "hello"}]}]
PRICES = PriceBook([])
AT_MS = 1_780_000_000_000
LATER_MS = 1_795_000_000_000


def read(body: dict[str, Any], endpoint: str = "converse", model: str = CLAUDE) -> RequestFacts:
    return BEDROCK.read_request(endpoint, Request(json.dumps(body).encode(), model))


def told(usage: dict[str, Any], endpoint: str = "converse", **captured: Any) -> UsageReport:
    found = BEDROCK.endpoint(endpoint)
    assert found is not None
    given = {"usage": json.dumps(usage), "complete": True, **captured}
    return found.read_usage(CapturedResponse(**given))


@pytest.mark.parametrize(
    ("path", "endpoint", "model"),
    [
        ("/model/amazon.nova-micro-v1:0/converse", "converse", "amazon.nova-micro-v1:0"),
        ("/model/amazon.nova-micro-v1%3A0/converse-stream", "converse_stream",
         "amazon.nova-micro-v1:0"),
        ("/model/us.anthropic.claude-x-v2%3a0/invoke", "invoke", "us.anthropic.claude-x-v2:0"),
        ("/model/m/invoke-with-response-stream", "invoke_stream", "m"),
        ("/model/m/count-tokens", "count_tokens", "m"),
        ("/model/us.amazon.nova-pro-v1%3A0/invoke", "invoke_nova", "us.amazon.nova-pro-v1:0"),
        ("/model/global.amazon.nova-2-lite-v1:0/invoke-with-response-stream", "invoke_nova_stream",
         "global.amazon.nova-2-lite-v1:0"),
        ("/model/amazon.nova-sonic-v1:0/invoke", "invoke", "amazon.nova-sonic-v1:0"),
        ("/model/us.meta.llama3-3-70b-instruct-v1:0/invoke", "invoke_llama",
         "us.meta.llama3-3-70b-instruct-v1:0"),
        ("/model/mistral.mistral-large-2402-v1:0/invoke", "invoke_mistral",
         "mistral.mistral-large-2402-v1:0"),
        ("/model/us.mistral.pixtral-large-2502-v1:0/invoke-with-response-stream",
         "invoke_mistral_stream", "us.mistral.pixtral-large-2502-v1:0"),
        ("/model/mistral.voxtral-mini-3b-2507/invoke", "invoke", "mistral.voxtral-mini-3b-2507"),
        ("/model/amazon.titan-text-express-v1/invoke", "invoke_titan",
         "amazon.titan-text-express-v1"),
        ("/model/amazon.titan-embed-text-v2:0/invoke", "invoke_embedding",
         "amazon.titan-embed-text-v2:0"),
        ("/model/amazon.titan-embed-text-v2:0/invoke-with-response-stream", "invoke_stream",
         "amazon.titan-embed-text-v2:0"),
        ("/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aprompt%2Fx/converse", None, None),
        ("/model/m/async-invoke", None, None),
        ("/async-invoke", None, None),
        ("/guardrail/g/version/1/apply", None, None),
        ("/model/m%2F..%2Fn/converse", None, None),
    ],
)  # fmt: skip
def test_the_path_names_the_endpoint_and_the_model(path, endpoint, model):
    route = BEDROCK.route("POST", path)
    assert (route and route.endpoint.name) == endpoint
    assert (route and route.path_model) == model


def test_a_conversation_is_bounded_by_its_bytes_and_its_cap():
    body = {"messages": HELLO, "inferenceConfig": {"maxTokens": 5}, "system": [{"text": "x"}]}
    facts = read(body)
    assert facts.input_tokens_max is not None
    assert facts.input_tokens_max >= len(json.dumps(body))
    assert (facts.output_tokens_cap, facts.media, facts.cache_writes) == (5, False, False)
    assert read({"messages": HELLO, "system": [{"cachePoint": {"type": "default"}}]}).cache_writes


@pytest.mark.parametrize(
    "model", ["global.openai.gpt-6-luna", "us.openai.gpt-6.1-sol", "global.moonshotai.kimi-k3"]
)
def test_a_cache_that_is_written_without_a_mark_is_in_the_estimate(model):
    raw = json.dumps({"messages": HELLO, "inferenceConfig": {"maxTokens": 1}}).encode()
    facts = BEDROCK.read_request("converse", Request(raw, model))
    priced = PRICES.find("bedrock", "aws", model)
    assert priced is not None
    assert facts.input_tokens_max is not None
    written = facts.input_tokens_max
    usage = {"inputTokens": 0, "outputTokens": 0, "cacheWriteInputTokens": written}
    assert priced.cost(told(usage), LATER_MS) <= priced.estimate(facts, LATER_MS, None).nanousd


@pytest.mark.parametrize(
    "block",
    [
        {"image": {"format": "png", "source": {"bytes": "AA=="}}},
        {"document": {"name": "a", "source": {"s3Location": {"uri": "s3://a/b"}}}},
        {"toolResult": {"toolUseId": "1", "content": [{"video": {}}]}},
    ],
)
def test_media_is_bounded_by_the_models_context_only(block):
    facts = read({"messages": [{"role": "user", "content": [block]}]})
    assert facts.input_tokens_max is None
    assert facts.media


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"guardrailConfig": {}}, Reason.UNMETERED_ENDPOINT),
        ({"promptVariables": {}}, Reason.UNMETERED_ENDPOINT),
        ({"performanceConfig": {"latency": "optimized"}}, Reason.UNMETERED_ENDPOINT),
        ({"serviceTier": {"type": "priority"}}, Reason.UNMETERED_ENDPOINT),
        ({"toolConfig": {"tools": [{"systemTool": {"name": "g"}}]}}, Reason.UNMETERED_ENDPOINT),
        ({"additionalModelRequestFields": {"max_tokens": 9}}, Reason.UNMETERED_ENDPOINT),
        ({"inferenceConfig": {"MaxTokens": 9}}, Reason.UNMETERED_ENDPOINT),
        ({"messages": [{"content": [{"guardContent": {}}]}]}, Reason.UNMETERED_ENDPOINT),
        ({"inferenceConfig": {"maxTokens": "9"}}, Reason.UNPARSEABLE_BODY),
        ({"inferenceConfig": []}, Reason.UNPARSEABLE_BODY),
        ({"toolConfig": 7}, Reason.UNPARSEABLE_BODY),
    ],
    ids=str,
)
def test_what_is_not_known_to_be_bounded_is_refused(body, reason):
    with pytest.raises(RequestError) as caught:
        read({"messages": HELLO, **body})
    assert caught.value.reason is reason


MESSAGE = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": []}


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({**MESSAGE, "model": "other"}, CLAUDE),
        ({**MESSAGE, "stream": True}, CLAUDE),
        ({**MESSAGE, "anthropic_beta": ["context-1m-2025-08-07"]}, CLAUDE),
        ({**MESSAGE, "tools": [{"type": "web_search_20250305"}]}, CLAUDE),
        ({"prompt": "hello"}, CLAUDE),
        (MESSAGE, "mistral.voxtral-mini-3b-2507"),
    ],
    ids=str,
)
def test_an_invocation_that_is_no_bounded_message_is_refused(body, model):
    with pytest.raises(RequestError):
        read(body, "invoke", model)


def test_a_message_to_an_invoked_model_is_read_as_anthropic_reads_it():
    facts = read({**MESSAGE, "anthropic_beta": ["interleaved-thinking-2025-05-14"]}, "invoke")
    assert (facts.model, facts.output_tokens_cap, facts.stream) == (CLAUDE, 9, False)
    assert read(MESSAGE, "invoke_stream").stream
    report = told({"input_tokens": 3, "output_tokens": 4}, "invoke", model='"claude-haiku-4-5"')
    assert report.amounts == {"input_tokens": 3, "output_tokens": 4}
    assert report.served_model is None  # the name would be priced as another region's


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "messages": st.just(HELLO),
            "inferenceConfig": st.one_of(
                st.none(),
                st.fixed_dictionaries({}, optional={"topP": st.just(1), "maxTokens": st.none()}),
            ),
        },
    ),
    st.sampled_from([None, 1]),
)
def test_a_default_cap_is_written_and_nothing_else_changes(document, indent):
    body = json.dumps(document, indent=indent).encode()
    facts = BEDROCK.read_request("converse", Request(body, CLAUDE))
    assert facts.cap_slot is not None
    edit = facts.cap_slot.edit(77)
    edited = body[: edit.offset] + edit.text.encode() + body[edit.offset + edit.dropped :]
    config = {**(document.get("inferenceConfig") or {}), "maxTokens": 77}
    assert json.loads(edited) == {**document, "inferenceConfig": config}


def test_a_lower_cap_is_written_over_the_clients_own_and_leaves_what_it_may_think():
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 700}}
    body = json.dumps({
        "messages": [], "inferenceConfig": {"topP": 1, "maxTokens": 5000},
        "additionalModelRequestFields": thinking,
    }).encode()  # fmt: skip
    facts = BEDROCK.read_request("converse", Request(body, CLAUDE))
    assert facts.cap_slot is not None
    edit = facts.cap_slot.edit(1000)
    assert body[edit.offset : edit.offset + edit.dropped] == b"5000"
    assert (edit.text, facts.thinking_tokens) == ("1000", 700)


# As documented: the reference's sample of Converse, and the guide's of prompt caching.
SAMPLE = {"inputTokens": 30, "outputTokens": 628, "totalTokens": 658}
CACHED = {
    "inputTokens": 4, "outputTokens": 100, "cacheReadInputTokens": 2000,
    "cacheWriteInputTokens": 1000, "totalTokens": 3104,
}  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "nanousd"),
    [
        (SAMPLE, 30 * 1000 + 628 * 5000),
        (CACHED, 4 * 1000 + 2000 * 100 + 1000 * 1250 + 100 * 5000),
    ],
    ids=["sample", "cache"],
)
def test_documented_answers_cost_what_the_price_page_says(usage, nanousd):
    report = told(usage)
    assert report.exactness is Exactness.EXACT
    priced = PRICES.find("bedrock", "aws", CLAUDE)
    assert priced is not None
    assert priced.cost(report, AT_MS) == nanousd


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"inputTokens": 3},
        {"inputTokens": "3", "outputTokens": 4},
        {"inputTokens": -3, "outputTokens": 4},
        {"inputTokens": 3, "outputTokens": 4, "cacheWriteInputTokens": 1.5},
        {"inputTokens": 3, "outputTokens": 4, "totalTokens": "7"},
    ],
    ids=str,
)
def test_usage_that_is_odd_is_unknown(usage):
    assert told(usage).exactness is Exactness.UNKNOWN


@pytest.mark.parametrize("captured", [{"complete": False}, {"error": True}])
def test_a_stream_that_did_not_end_well_tells_a_lower_bound(captured):
    assert told(SAMPLE, **captured).exactness is Exactness.LOWER_BOUND


@given(st.text(max_size=300), st.integers(1, 5000), st.booleans(), st.data())
def test_no_answer_costs_more_than_its_estimate(text, cap, caches, data):
    content = [{"text": text}, *([{"cachePoint": {"type": "default"}}] if caches else [])]
    messages = [{"role": "user", "content": content}]
    raw = json.dumps({"messages": messages, "inferenceConfig": {"maxTokens": cap}}).encode()
    facts = BEDROCK.read_request("converse", Request(raw, CLAUDE))
    size = len(text.encode())
    written = data.draw(st.integers(0, size)) if caches else 0
    cached = data.draw(st.integers(0, size - written))
    usage = {
        "inputTokens": size - written - cached,
        "cacheReadInputTokens": cached,
        "cacheWriteInputTokens": written,
        "outputTokens": data.draw(st.integers(0, cap)),
    }
    priced = PRICES.find("bedrock", "aws", CLAUDE)
    assert priced is not None
    assert priced.estimate(facts, AT_MS, None).nanousd >= priced.cost(told(usage), AT_MS)


def test_the_key_is_the_access_key_id_of_whoever_signs():
    signed = "AWS4-HMAC-SHA256 Credential=xa_key/20260101/us-east-1/bedrock/aws4_request, X=y"
    assert read_credential({"authorization": signed}) == "xa_key"
    with pytest.raises(CredentialError):
        read_credential({"authorization": "AWS4-HMAC-SHA256 Credential=/2026"})
    with pytest.raises(CredentialError):
        read_credential({"authorization": signed, "x-api-key": "another"})


NATIVE = {
    "invoke_nova": {"messages": HELLO, "inferenceConfig": {"maxTokens": 9, "topK": 3},
                    "schemaVersion": "messages-v1", "system": [{"text": "x"}]},
    "invoke_llama": {"prompt": "hello", "max_gen_len": 9, "top_p": 1},
    "invoke_mistral": {"prompt": "hello", "max_tokens": 9, "stop": ["x"]},
    "invoke_titan": {"inputText": "hello", "textGenerationConfig": {"maxTokenCount": 9}},
    "invoke_embedding": {"inputText": "hello", "dimensions": 256, "normalize": True},
}  # fmt: skip
NATIVE_CAPS = {
    "invoke_nova": ("inferenceConfig", "maxTokens"),
    "invoke_llama": ("max_gen_len",),
    "invoke_mistral": ("max_tokens",),
    "invoke_titan": ("textGenerationConfig", "maxTokenCount"),
}


@pytest.mark.parametrize("endpoint", NATIVE)
def test_a_models_own_body_is_bounded_by_its_bytes_and_its_cap(endpoint):
    body = NATIVE[endpoint]
    facts = read(body, endpoint, "m")
    assert facts.input_tokens_max is not None
    assert facts.input_tokens_max >= len(json.dumps(body))
    assert facts.output_tokens_cap == (0 if endpoint == "invoke_embedding" else 9)
    assert (facts.model, facts.media, facts.stream) == ("m", False, False)


@pytest.mark.parametrize("endpoint", NATIVE_CAPS)
@pytest.mark.parametrize("stands", [False, True])
def test_a_cap_is_written_where_the_model_reads_it(endpoint, stands):
    outer, *inner = NATIVE_CAPS[endpoint]
    given = {key: value for key, value in NATIVE[endpoint].items() if stands or key != outer}
    body = json.dumps(given).encode()
    slot = BEDROCK.read_request(endpoint, Request(body, "m")).cap_slot
    assert slot is not None
    edit = slot.edit(7)
    edited = json.loads(
        body[: edit.offset] + edit.text.encode() + body[edit.offset + edit.dropped :]
    )
    assert edited.pop(outer) == ({**(given.get(outer) or {}), inner[0]: 7} if inner else 7)
    assert edited == {key: value for key, value in given.items() if key != outer}


@pytest.mark.parametrize(
    ("endpoint", "more"),
    [
        ("invoke_nova", {"inferenceConfig": {"max_new_tokens": 9}}),
        ("invoke_nova", {"inferenceConfig": {"reasoningConfig": {"type": "enabled"}}}),
        ("invoke_nova", {"reasoningConfig": {"type": "enabled"}}),
        ("invoke_nova", {"toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]}}),
        ("invoke_nova", {"guardrailConfig": {}}),
        ("invoke_llama", {"max_tokens": 9}),
        ("invoke_llama", {"max_gen_len": "9"}),
        ("invoke_llama", {"prompt": ["hello"]}),
        ("invoke_llama", {"Max_gen_len": 9}),
        ("invoke_mistral", {"max_completion_tokens": 9}),
        ("invoke_mistral", {"max_tokens": "9"}),
        ("invoke_mistral", {"prompt": ["hello"]}),
        ("invoke_mistral", {"messages": [{"role": "user", "content": "hello"}]}),  # and a prompt
        ("invoke_titan", {"textGenerationConfig": {"max_tokens": 9}}),
        ("invoke_embedding", {"inputImage": "AA=="}),
        ("invoke_embedding", {"inputText": None}),
    ],
    ids=str,
)
def test_what_a_models_own_body_may_not_hold_is_refused(endpoint, more):
    with pytest.raises(RequestError):
        read({**NATIVE[endpoint], **more}, endpoint, "m")


def mistral_chat(content: Any, **fields: Any):
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 9, **fields}
    return read(body, "invoke_mistral", "m")


def test_messages_to_a_mistral_are_bounded_by_their_bytes_and_their_cap():
    facts = mistral_chat("hello", tools=[{"type": "function", "function": {"name": "f"}}])
    assert facts.input_tokens_max is not None
    assert (facts.output_tokens_cap, facts.media) == (9, False)
    seen = mistral_chat([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}])
    assert (seen.input_tokens_max, seen.media) == (None, True)


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ([{"type": "document_url", "document_url": "https://a"}], {}),
        ([{"type": "input_audio", "input_audio": "x"}], {}),
        (["hello"], {}),
        ("hello", {"tools": [{"type": "web_search"}]}),
        ("hello", {"tools": [{"type": "function", "connector": "c"}]}),
        ("hello", {"n": 9}),
        ("hello", {"prompt": "hello"}),
    ],
    ids=str,
)
def test_what_messages_to_a_mistral_may_not_hold_is_refused(content, fields):
    with pytest.raises(RequestError):
        mistral_chat(content, **fields)


def test_a_llama_that_sees_is_bounded_by_its_context_only():
    facts = read({**NATIVE["invoke_llama"], "images": ["AA=="]}, "invoke_llama", "m")
    assert (facts.input_tokens_max, facts.media) == (None, True)


def counted(endpoint: str, metrics: Any, **captured: Any) -> UsageReport:
    found = BEDROCK.endpoint(endpoint)
    assert found is not None
    given = {"metrics": json.dumps(metrics), "complete": True, **captured}
    return found.read_usage(CapturedResponse(**given))


def test_what_bedrock_counted_is_the_usage_of_a_models_own_body():
    metrics = {
        "inputTokenCount": 4, "outputTokenCount": 100, "cacheReadInputTokenCount": 2000,
        "cacheWriteInputTokenCount": 1000, "invocationLatency": 7, "firstByteLatency": 3,
    }  # fmt: skip
    report = counted("invoke_nova", metrics)
    assert report == told({**CACHED, "totalTokens": 3104})
    forged = '{"inputTokens":0,"outputTokens":0}'  # (the body's own says no more than it may)
    assert counted("invoke_nova_stream", metrics, usage=forged) == report
    assert counted("invoke_embedding", {"inputTokenCount": 4}).amounts["input_tokens"] == 4


@pytest.mark.parametrize(
    "metrics",
    [{}, {"inputTokenCount": 4}, {"outputTokenCount": 4}, [], "",
     {"inputTokenCount": 4, "outputTokenCount": -1},
     {"inputTokenCount": "4", "outputTokenCount": 1},
     {"inputTokenCount": 4, "outputTokenCount": 1, "cacheReadInputTokenCount": 1.5}],
    ids=str,
)  # fmt: skip
def test_counts_that_are_not_whole_are_no_usage(metrics):
    assert counted("invoke_llama", metrics).exactness is Exactness.UNKNOWN
