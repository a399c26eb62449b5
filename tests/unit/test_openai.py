"""OpenAI chat completions: facts that bound the bill, and usage that is believed only if sound."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import (
    CapturedResponse,
    Metering,
    Refusal,
    Request,
    RequestError,
    RequestFacts,
)
from extauthz.reasons import Reason
from extauthz.usage import Exactness, UsageReport

OPENAI = ADAPTERS["openai"]
CHAT_ENDPOINT = OPENAI.endpoints[0]
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
FUNCTION = {"type": "function", "function": {"name": "f"}}


def facts(**fields: object) -> RequestFacts:
    body = json.dumps({"model": "gpt-4o", "messages": HELLO, **fields}).encode()
    return OPENAI.read_request("chat", Request(body))


def refused(**fields: object) -> Reason:
    with pytest.raises(RequestError) as caught:
        facts(**fields)
    assert "PlantedSecret" not in caught.value.message
    return caught.value.reason


def content(*parts: object) -> list[object]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("method", "path", "metering"),
    [
        ("POST", CHAT, Metering.BILLED),
        ("GET", "/v1/models", Metering.FREE),
        ("GET", "/v1/models/gpt-4o", Metering.FREE),
        ("GET", "/v1/models/ft:gpt-4o-mini-2024-07-18:org::id", Metering.FREE),
        ("GET", "/v1/models/../files", None),
        ("GET", "/v1/models/..", None),
        ("GET", "/v1/models/%2e%2e/files", None),
        ("GET", "/v1/models/a/b", None),
        ("GET", "/v1/models/", None),
        ("DELETE", "/v1/models/gpt-4o", None),
        ("GET", CHAT, None),
        ("POST", CHAT + "/", None),
        ("POST", "/v1//chat/completions", None),
        ("post", CHAT, None),
        ("POST", "/v1/responses", Metering.BILLED),
        ("POST", "/v1/embeddings", Metering.BILLED),
        ("POST", "/v1/images/edits", Metering.BILLED),
        ("POST", "/v1/audio/transcriptions", Metering.BILLED),
        ("POST", "/v1/images/variations", None),
        ("GET", "/v1/audio/transcriptions", None),
        ("POST", "", None),
    ],
)
def test_only_known_endpoints_are_let_through(method, path, metering):
    route = OPENAI.route(method, path)
    assert (route and route.endpoint.metering) is metering


def test_the_input_of_a_text_call_is_bounded_by_its_bytes():
    body = json.dumps({"model": "gpt-4o", "messages": HELLO}).encode()
    read = OPENAI.read_request("chat", Request(body))
    assert read.input_tokens_max is not None
    assert len(body) <= read.input_tokens_max <= len(body) + 2048


@pytest.mark.parametrize(
    ("fields", "cap", "written"),
    [
        ({}, None, [6]),
        ({"max_tokens": None, "max_completion_tokens": None}, None, [6]),
        ({"max_tokens": 5}, 5, [5]),
        ({"max_completion_tokens": 7}, 7, [6]),
        ({"max_tokens": None, "max_completion_tokens": 7}, 7, [6]),
        # Which of them holds differs.
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7, [6, 5]),
        ({"max_tokens": 9, "max_completion_tokens": 7}, 9, [6, 6]),
    ],
)
def test_the_larger_of_two_caps_bounds_an_answer_and_a_lower_one_is_written_into_both(
    fields, cap, written
):
    read = facts(**fields)
    assert read.output_tokens_cap == cap
    assert read.cap_slot is not None
    edits = [slot.edit(6) for slot in (read.cap_slot, *read.other_caps)]
    assert [int(edit.text.strip('":,_abcdefghijklmnopqrstuvwxyz')) for edit in edits] == written


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_a_lower_cap_is_written_over_the_clients_own_where_it_stands(key):
    body = json.dumps({"model": "m", "messages": [{"max_tokens": 9}], key: 900, "n": 2}).encode()
    slot = OPENAI.read_request("chat", Request(body)).cap_slot
    assert slot is not None
    assert body[slot.offset : slot.offset + slot.dropped] == b"900"
    assert slot.edit(7).text == "7"


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"reasoning": {"max_tokens": 2000}}, 2000),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 1024),
        ({"thinking": {"budget_tokens": True}}, 0),
        ({"reasoning": {"effort": "high"}}, 0),
        ({}, 0),
    ],
)
def test_what_the_client_lets_a_server_think_is_told(fields, tokens):
    body = json.dumps({"model": "m", "messages": [], **fields}).encode()
    adapter = ADAPTERS["openrouter" if "reasoning" in fields else "together"]
    assert adapter.read_request("chat", Request(body)).thinking_tokens == tokens


@pytest.mark.parametrize(
    ("thinks", "cap", "beyond"), [(999, 1000, 0), (1000, 1000, 4000), (5000, 1000, 20_000)]
)
def test_thoughts_that_are_given_more_than_the_cap_are_reckoned_beside_it(thinks, cap, beyond):
    fields = {"thinking": {"budget_tokens": thinks}, "max_tokens": cap, "n": 4}
    body = json.dumps({"model": "m", "messages": [], **fields}).encode()
    read = ADAPTERS["together"].read_request("chat", Request(body))
    assert (read.output_tokens_cap, read.extra_output_tokens) == (cap, beyond)


@pytest.mark.parametrize("value", [0, -1, 1.5, 100.0, "100", True, [], 10**8])
@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens", "n"])
def test_a_count_of_another_type_is_refused(key, value):
    assert refused(**{key: value}) is Reason.UNPARSEABLE_BODY


def test_every_answer_is_counted():
    assert facts(n=7).answers == 7
    assert facts(n=None).answers == facts().answers == 1


def test_a_rejected_prediction_is_output_too():
    read = facts(prediction={"type": "content", "content": "x" * 500})
    assert read.extra_output_tokens == read.input_tokens_max
    assert facts(prediction=None).extra_output_tokens == 0
    each = facts(prediction={"type": "content", "content": "x" * 500}, n=3)
    assert each.input_tokens_max is not None
    assert each.extra_output_tokens == 3 * each.input_tokens_max


LONG = {"mode": "explicit", "ttl": "12h"}
MARKED = {"type": "text", "text": "x", "prompt_cache_breakpoint": LONG}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_cache_options": {"ttl": "12h"}},
        {"prompt_cache_options": {"ttl": 30}},
        {"prompt_cache_options": {"an_unheard_of": True}},
        {"messages": [{"role": "user", "content": [MARKED]}]},
        {"tools": [{**MARKED, "type": "function", "function": {"name": "f"}}]},
    ],
    ids=str,
)
@pytest.mark.parametrize("endpoint", ["chat", "responses"])
@pytest.mark.parametrize("escaped", [False, True])
def test_a_cache_that_lasts_longer_than_any_list_has_a_price_for_is_refused(
    endpoint, fields, escaped
):
    if endpoint == "responses":
        fields = {"input" if key == "messages" else key: value for key, value in fields.items()}
    body = json.dumps({"model": "gpt-5.6-sol", **fields})
    body = body.replace("breakpoint", "br\\u0065akpoint") if escaped else body
    with pytest.raises(RequestError) as caught:
        ADAPTERS["openai"].read_request(endpoint, Request(body.encode()))
    assert caught.value.reason is Reason.UNMETERED_ENDPOINT


def test_a_cache_as_the_list_has_it_passes():
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    part = {"type": "text", "text": "x", **mark}
    passed = facts(
        messages=[{"role": "user", "content": [part]}],
        prompt_cache_options={"mode": "implicit", "ttl": "30m"},
    )
    assert passed.cache_writes


@pytest.mark.parametrize(
    "fields",
    [
        {"web_search_options": {}},
        {"web_search_options": {"PlantedSecret": 1}},
        {"models": ["gpt-4o", "o1-pro"]},
        {"plugins": [{"id": "web"}]},
        {"fallbacks": ["o1-pro"]},
        {"provider": {"order": ["x"]}},
        {"search_parameters": {"mode": "on"}},
        {"tools": [{"type": "web_search_preview"}]},
        {"tools": [{"type": "code_interpreter", "container": "PlantedSecret"}]},
        {"tools": [FUNCTION, {"type": "mcp"}]},
        {"tools": [{"type": ["function"]}]},
        {"tools": [{}]},
        {"tools": ["function"]},
        {"tools": [None]},
        {"model": "gpt-4o-search-preview"},
        {"model": "GPT-4o-mini-Search-Preview-2025-03-11"},
        {"model": "gpt-5-search-api"},
        {"model": "o4-mini-deep-research"},
    ],
)
def test_what_bills_beside_the_tokens_of_the_request_is_refused(fields):
    assert refused(**fields) is Reason.UNMETERED_ENDPOINT


def test_tools_that_the_client_runs_are_let_through():
    assert facts(tools=[FUNCTION, {"type": "custom", "custom": {"name": "c"}}]).model == "gpt-4o"


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/large.png"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}


@pytest.mark.parametrize(
    ("fields", "media", "audio"),
    [
        ({}, False, False),
        ({"modalities": ["text"]}, False, False),
        ({"messages": content({"type": "text", "text": "x"})}, False, False),
        ({"messages": content({"type": "refusal", "refusal": "x"})}, False, False),
        ({"messages": content(IMAGE)}, True, False),
        ({"messages": content({"type": "file", "file": {"file_id": "f"}})}, True, False),
        ({"messages": content(IMAGE, SOUND)}, True, True),
        ({"messages": content({"type": "unheard_of"})}, True, True),
        ({"messages": content({"type": ["text"]})}, True, True),
        ({"messages": content("text")}, True, True),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, True, True),
        # What is beside the content may be the URL of a picture.
        ({"messages": [{"role": "user", "content": "x", "images": ["http://x"]}]}, True, False),
        ({"messages": [{"role": "user", "content": "x", "images": None}]}, False, False),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, False, False),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, True, True),
        ({"modalities": ["text", "audio"]}, True, True),
        ({"modalities": "audio"}, True, True),
        ({"audio": {"voice": "alloy"}}, True, True),
    ],
)
def test_what_is_no_text_is_bounded_by_the_context_window(fields, media, audio):
    read = facts(**fields)
    assert (read.media, read.audio) == (media, audio)
    assert (read.input_tokens_max is None) == (media and not read.images)


def test_pictures_are_counted_and_neither_their_links_nor_their_data_are_text():
    data = "data:image/png;base64," + "A" * 5_000
    inline = {"type": "image_url", "image_url": {"url": data}}
    read = facts(messages=[*content(IMAGE, inline), *content({"type": "text", "text": "x" * 50})])
    assert (read.images, read.media, read.audio) == (2, True, False)
    assert read.input_tokens_max is not None
    assert 1024 + 50 < read.input_tokens_max < 1024 + 400
    for beside in (SOUND, {"type": "file", "file": {}}):
        assert facts(messages=content(IMAGE, beside)).images == 0
    unknown = [{"role": "user", "content": [IMAGE], "images": ["u"]}]
    assert facts(messages=unknown).input_tokens_max is None


@pytest.mark.parametrize(
    ("model", "pictures", "bound"),
    [
        ("gpt-4o", 2, 3000),
        ("gpt-4o-mini", 1, 50_000),
        ("gpt-4o", 1000, None),  # the window takes no more
        ("gpt-5.4", 1, None),
    ],
)
def test_a_picture_is_at_most_what_the_model_takes_for_one_else_all_of_its_window(
    model, pictures, bound
):
    read = facts(model=model, messages=content(*[IMAGE] * pictures), max_tokens=1)
    priced = PriceBook([]).find("openai", "openai", model)
    assert priced is not None
    assert read.input_tokens_max is not None
    most = priced.context_window if bound is None else read.input_tokens_max + bound
    assert priced.estimate(read, 1_795_000_000_000, None).input_tokens == most


@pytest.mark.parametrize(
    ("tier", "served"),
    [
        (None, {None, "default", "priority", "fast"}),
        ("auto", {None, "default", "priority", "fast"}),
        ("priority", {None, "default", "priority", "fast"}),
        ("scale", {None, "default", "priority", "fast"}),
        ("default", {None, "default"}),
        ("flex", {None, "default", "flex"}),
    ],
)
def test_every_tier_that_may_be_served_is_reckoned_with(tier, served):
    read = facts(service_tier=tier)
    assert {context.get("service_tier") for context in read.price_contexts} == served
    assert (read.premium is not None) == (tier == "priority")


@pytest.mark.parametrize(
    "fields",
    [
        {"model": None}, {"model": ""}, {"model": 5}, {"model": "x" * 257}, {"stream": "true"},
        {"stream": 1}, {"messages": {}}, {"messages": ["PlantedSecret"]}, {"tools": {}},
        {"service_tier": 5}, {"service_tier": ["flex"]}, {"stream": True, "stream_options": []},
        {"stream": True, "stream_options": {"include_usage": "PlantedSecret"}},
    ],
)  # fmt: skip
def test_wrong_types_are_refused(fields):
    assert refused(**fields) is Reason.UNPARSEABLE_BODY


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = (
    "model", "messages", "tools", "n", "max_tokens", "stream", "stream_options", "modalities",
    "audio", "prediction", "service_tier",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), jsons))
def test_whatever_stands_in_its_fields_a_request_has_facts_or_a_reason(fields):
    body = json.dumps({"model": "gpt-4o", **fields}).encode()
    try:
        assert OPENAI.read_request("chat", Request(body)).answers >= 1
    except RequestError as error:
        assert error.reason in Reason


# The example of the API reference, https://platform.openai.com/docs/api-reference/chat/create
DOCUMENTED = {
    "prompt_tokens": 1117,
    "completion_tokens": 46,
    "total_tokens": 1163,
    "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 12,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def read(usage: object, **captured: object) -> UsageReport:
    fields: dict = {"model": '"gpt-4o-2024-08-06"', "complete": True, **captured}
    return CHAT_ENDPOINT.read_usage(CapturedResponse(usage=json.dumps(usage), **fields))


def test_the_documented_usage_is_read():
    report = read(DOCUMENTED, service_tier='"priority"')
    assert report.exactness is Exactness.EXACT
    assert report.amounts["input_tokens"] == 1117
    assert report.amounts["output_tokens"] == 46
    assert report.amounts["cache_read_tokens"] == 1024
    assert report.served_model == "gpt-4o-2024-08-06"
    assert report.price_context == {"service_tier": "priority"}
    assert report.tokens == 1163


def test_null_details_are_no_details():
    usage = {**DOCUMENTED, "prompt_tokens_details": None, "completion_tokens_details": None}
    assert read(usage).amounts == {"input_tokens": 1117, "output_tokens": 46}


def test_output_that_only_the_total_has_is_counted():
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115}
    assert read(usage).amounts == {"input_tokens": 10, "output_tokens": 105}


@pytest.mark.parametrize("captured", [{"complete": False}, {"error": True}])
def test_a_running_usage_of_a_cut_answer_is_a_lower_bound(captured):
    report = read(DOCUMENTED, **captured)
    assert report.exactness is Exactness.LOWER_BOUND
    assert report.tokens == 1163


SOUND_USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


@pytest.mark.parametrize("bad", [-1, 1.5, 5.0, "5", True, False, [], {}, 10**10, 10**400])
@pytest.mark.parametrize(
    "path",
    [
        ("prompt_tokens",), ("completion_tokens",), ("total_tokens",),
        ("prompt_tokens_details", "cached_tokens"), ("prompt_tokens_details", "audio_tokens"),
        ("completion_tokens_details", "audio_tokens"),
    ],
)  # fmt: skip
def test_a_count_that_is_no_plausible_whole_number_makes_all_unknown(path, bad):
    usage: dict = json.loads(json.dumps(SOUND_USAGE))
    holder = usage
    for key in path[:-1]:
        holder = holder.setdefault(key, {})
    holder[path[-1]] = bad
    assert read(usage).exactness is Exactness.UNKNOWN


@pytest.mark.parametrize(
    "usage",
    [
        {}, {"prompt_tokens": 5}, {"completion_tokens": 5}, [], 5, "usage", None,
        {"prompt_tokens": None, "completion_tokens": 5},
        {**SOUND_USAGE, "total_tokens": 14}, {**SOUND_USAGE, "prompt_tokens_details": 5},
    ],
)  # fmt: skip
def test_a_usage_that_lacks_or_contradicts_itself_is_unknown(usage):
    assert read(usage).exactness is Exactness.UNKNOWN


@pytest.mark.parametrize(
    "text",
    [None, "", "{", '{"prompt_tokens":1,"prompt_tokens":2,"completion_tokens":1}', "[" * 9999,
     '{"prompt_tokens":NaN,"completion_tokens":1}',
     '{"prompt_tokens":1e999,"completion_tokens":1}'],
)  # fmt: skip
def test_a_usage_that_is_no_strict_json_is_unknown(text):
    report = CHAT_ENDPOINT.read_usage(CapturedResponse(usage=text, complete=True))
    assert report.exactness is Exactness.UNKNOWN


@given(st.text(), st.text(), st.text())
def test_whatever_was_captured_there_is_a_report(usage, model, tier):
    CHAT_ENDPOINT.read_usage(CapturedResponse(usage, usage, model, tier, complete=True))


@pytest.mark.parametrize("model", ["5", "null", '"' + "x" * 300 + '"', "{}"])
def test_a_served_model_that_is_no_name_is_passed_over(model):
    assert read(SOUND_USAGE, model=model).served_model is None


def test_a_refusal_has_the_shape_that_the_sdk_reads():
    refusal = Refusal(429, Reason.BUDGET_EXHAUSTED, "spent", "d-1", {"budget": "b"})
    error = json.loads(OPENAI.refusal_body(refusal))["error"]
    assert error == {
        "message": "spent",
        "type": "insufficient_quota",
        "code": "budget_exhausted",
        "param": None,
        "decision_id": "d-1",
        "budget": "b",
    }
