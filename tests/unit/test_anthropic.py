"""Anthropic messages: facts that bound the bill, and usage of messages and cut streams."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import (
    REGIONAL,
    CapturedResponse,
    Metering,
    Refusal,
    Request,
    RequestError,
    RequestFacts,
)
from extauthz.reasons import Reason
from extauthz.usage import Exactness, UsageReport

ANTHROPIC = ADAPTERS["anthropic"]
MESSAGES_ENDPOINT = ANTHROPIC.endpoints[0]
MESSAGES = "/v1/messages"
NOW = 1_790_000_000_000
HELLO = [{"role": "user", "content": "hello"}]


def body_of(**fields: object) -> bytes:
    sent = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": HELLO, **fields}
    return json.dumps(sent).encode()


def facts(**fields: object) -> RequestFacts:
    return ANTHROPIC.read_request("messages", Request(body_of(**fields)))


def refused(**fields: object) -> Reason:
    with pytest.raises(RequestError) as caught:
        facts(**fields)
    assert "PlantedSecret" not in caught.value.message
    return caught.value.reason


def content(*blocks: object) -> list[object]:
    return [{"role": "user", "content": list(blocks)}]


@pytest.mark.parametrize(
    ("method", "path", "metering"),
    [
        ("POST", MESSAGES, Metering.BILLED),
        ("POST", "/v1/messages/count_tokens", Metering.FREE),
        ("GET", "/v1/models", Metering.FREE),
        ("GET", "/v1/models/claude-haiku-4-5", Metering.FREE),
        ("GET", "/v1/models/../files", None),
        ("GET", "/v1/models/%2e%2e/files", None),
        ("POST", "/v1/messages/batches", None),
        ("POST", "/v1/complete", None),
        ("GET", MESSAGES, None),
        ("GET", "/v1/files", None),
        ("POST", "/v1/models", None),
    ],
)
def test_only_known_endpoints_are_let_through(method, path, metering):
    route = ANTHROPIC.route(method, path)
    assert (route and route.endpoint.metering) is metering


def test_the_input_of_a_text_call_is_bounded_by_its_bytes():
    read = facts()
    assert read.input_tokens_max is not None
    assert len(body_of()) <= read.input_tokens_max <= len(body_of()) + 2048
    assert read.output_tokens_cap == 100


@pytest.mark.parametrize("value", [0, -1, 1.5, 100.0, "100", True, [], 10**8])
def test_a_cap_of_another_type_is_refused(value):
    assert refused(max_tokens=value) is Reason.UNPARSEABLE_BODY


@pytest.mark.parametrize(
    "fields",
    [
        {"mcp_servers": [{"url": "PlantedSecret"}]},
        {"container": "PlantedSecret"},
        {"fallbacks": [{"model": "claude-opus-4-1"}]},
        {"fallbacks": "default"},
        {"thread": {"type": "continue", "previous_message_id": "msg_1"}},
        {"compaction": {"type": "summarize"}},
        {"an_unheard_of_parameter": "PlantedSecret"},
        {"context_management": {"edits": [{"type": "compact_20260112"}]}},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015"}, {"type": 5}]}},
        {"context_management": {"edits": {"type": "clear_thinking_20251015"}}},
        {"context_management": {"edits": ["PlantedSecret"]}},
        {"context_management": "PlantedSecret"},
        {"inference_geo": "eu"},
        {"inference_geo": 5},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "web_fetch_20250910"}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": None}]},
        {"tools": [{"type": "web_search_20250305", "max_uses": 1, "allowed_callers": ["x"]}]},
        {"tools": [{"type": "web_search_20260209", "name": "web_search", "max_uses": 1}]},
        {"tools": [{"type": "code_execution_20250825"}]},
        {"tools": [{"type": "mcp_toolset"}]},
        {"tools": [{"type": "advisor_20260301"}]},
        {"tools": [{"type": "bash_code_execution_tool"}]},
        {"tools": [{"type": "custom_at_the_provider"}]},
        {"tools": [{"type": "computer_use_at_the_provider"}]},
        {"tools": [{"type": ["custom"]}]},
        {"tools": ["custom"]},
        {"tools": [None]},
        {"messages": content({"type": "code_execution_tool_result", "content": []})},
        {"messages": content({"type": "tool_addition", "tool": {"type": "web_search_20250305"}})},
        {"messages": content({"type": "container_upload", "file_id": "f"})},
        {"messages": content({"type": "compaction", "content": "x"})},
        {"messages": content({"type": "unheard_of"})},
        {"messages": content("PlantedSecret")},
        {"messages": content({"type": ["text"]})},
        {"system": [{"type": "mcp_tool_use"}]},
        {"messages": content({"type": "tool_result", "content": [{"type": "unheard_of"}]})},
    ],
)
def test_what_bills_beside_the_tokens_of_the_request_is_refused(fields):
    assert refused(**fields) is Reason.UNMETERED_ENDPOINT


@pytest.mark.parametrize(
    "fields",
    [
        {"mcp_servers": None, "container": None, "thread": None, "unknown": None},
        {"context_management": None},
        {"context_management": {}},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        {"inference_geo": "global"},
        {"tools": [{"name": "f"}, {"type": "custom", "name": "g"}, {"type": None, "name": "h"}]},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    ],
)
def test_what_is_bounded_is_let_through(fields):
    assert facts(**fields).input_tokens_max is not None


def test_tools_that_anthropic_defines_are_reckoned_with_at_what_they_add_to_the_prompt():
    tools = [
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
        {"type": "computer_20251124", "name": "computer"},
        {"type": "memory_20250818", "name": "memory"},
    ]
    bound = facts(tools=tools).input_tokens_max
    assert bound is not None
    assert bound - len(body_of(tools=tools)) >= 735 + 245 + 700 + 735 + 735


@pytest.mark.parametrize(
    "blocks",
    [
        [{"type": "document", "source": {"type": "file", "file_id": "f"}}],
        [{"type": "image"}, {"type": "document", "source": {"type": "url", "url": "u"}}],
        [{"type": "tool_result", "content": [{"type": "image"}, {"type": "search_result"}]}],
    ],
)
def test_what_is_no_text_is_bounded_by_the_context_window(blocks):
    read = facts(messages=content({"type": "text", "text": "x"}, *blocks))
    assert read.media
    assert read.input_tokens_max is None
    assert facts(system=blocks).media


def test_pictures_are_counted_wherever_they_are():
    inner = {"type": "tool_result", "content": [{"type": "text"}, {"type": "image"}]}
    read = facts(messages=content({"type": "text", "text": "x"}, {"type": "image"}, inner))
    assert (read.images, read.media) == (2, True)
    assert read.input_tokens_max is not None
    priced = PriceBook([]).find("anthropic", "anthropic", "claude-haiku-4-5")
    assert priced is not None
    assert priced.estimate(read, 1_795_000_000_000, None).input_tokens == (
        read.input_tokens_max + 2 * 6_000
    )


def test_text_thinking_and_tool_calls_are_text():
    read = facts(
        messages=content(
            {"type": "text", "text": "x"},
            {"type": "thinking", "thinking": "x"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "tool_use", "input": {"type": "image"}},
            {"type": "tool_result", "content": "x"},
            {"type": "tool_result", "content": [{"type": "text", "text": "x"}]},
        )
    )
    assert not read.media


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_control": {"type": "ephemeral"}},
        {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    ],
)
def test_a_cache_mark_anywhere_lets_cache_writes_be_billed(fields):
    assert facts(**fields).cache_writes
    assert not facts().cache_writes


def test_a_cache_mark_in_an_escaped_spelling_is_found():
    body = body_of(cache_control={"type": "ephemeral"}).replace(b"cache_", b"c\\u0061che_")
    assert ANTHROPIC.read_request("messages", Request(body)).cache_writes


def test_fast_mode_is_reckoned_with_and_needs_its_price():
    given = facts(speed="fast", inference_geo="global")
    assert given.price_contexts == ({}, {"speed": "fast"})
    assert facts(speed="fast").premium == {"speed": "fast"}
    assert facts(speed="standard").premium is facts(speed=None).premium is None


@pytest.mark.parametrize(
    "fields",
    [
        {"model": None}, {"model": 5}, {"stream": "yes"}, {"messages": {}}, {"messages": [5]},
        {"tools": {}}, {"speed": 5}, {"speed": ["fast"]},
    ],
)  # fmt: skip
def test_wrong_types_are_refused(fields):
    assert refused(**fields) is Reason.UNPARSEABLE_BODY


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("text"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = ("model", "messages", "tools", "max_tokens", "stream", "system", "speed", "inference_geo",
          "context_management")  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), jsons))
def test_whatever_stands_in_its_fields_a_request_has_facts_or_a_reason(fields):
    try:
        facts(**fields)
    except RequestError as error:
        assert error.reason in Reason


SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
FETCH = {"type": "web_fetch_20250910", "name": "web_fetch", "max_uses": 9}


def test_a_search_is_bounded_by_its_uses_and_ten_readings_of_the_whole_context():
    given = facts(tools=[SEARCH, FETCH, {"name": "f"}], inference_geo="global")
    assert (given.input_readings, given.answers, given.input_tokens_max) == (10, 10, None)
    assert given.counted == {"web_searches": 3}
    assert given.cap_slot is not None

    haiku = PriceBook([]).find("anthropic", "anthropic", "claude-haiku-4-5")
    assert haiku is not None
    assert haiku.covers(given, NOW)
    # 1 USD and 5 USD per million tokens, 10 USD a thousand searches; the list's window, rounded up.
    most = 10 * 210_000 * 1_000 + 10 * given.output_tokens_cap * 5_000 + 3 * 10_000_000
    assert haiku.estimate(given, NOW, None).nanousd == most
    told = {
        "input_tokens": 6039,
        "output_tokens": 931,
        "server_tool_use": {"web_search_requests": 3},
    }
    assert haiku.cost(read(told), NOW) == 6039 * 1_000 + 931 * 5_000 + 3 * 10_000_000


def test_a_model_without_a_price_for_a_search_is_not_covered():
    given = facts(tools=[SEARCH])
    for provider, model in (
        ("anthropic", "claude-3-haiku"),
        ("google", "claude-haiku-4-5@20251001"),
    ):
        priced = PriceBook([]).find(provider, provider, model)
        assert priced is not None
        assert not priced.covers(given, NOW)


@pytest.mark.parametrize("uses", [0, -1, 1.0, True, "3", 101])
def test_uses_that_are_no_count_are_refused(uses):
    assert refused(tools=[{**SEARCH, "max_uses": uses}]) is Reason.UNPARSEABLE_BODY


def test_what_an_earlier_search_found_is_held_at_the_whole_context():
    found = {"type": "web_search_tool_result", "tool_use_id": "t", "content": []}
    assert facts(messages=content(found)).input_tokens_max is None


# The example of the API reference, with the fields that SDK 2.12 knows.
DOCUMENTED = {
    "input_tokens": 2095,
    "cache_creation_input_tokens": 2051,
    "cache_read_input_tokens": 2051,
    "cache_creation": {"ephemeral_5m_input_tokens": 2000, "ephemeral_1h_input_tokens": 51},
    "output_tokens": 503,
    "output_tokens_details": {"thinking_tokens": 12},
    "inference_geo": "not_available",
    "iterations": None,
    "server_tool_use": None,
    "service_tier": "standard",
    "speed": "standard",
}
START = {**DOCUMENTED, "output_tokens": 1, "output_tokens_details": None}


def read(last: object, first: object = None, **captured: object) -> UsageReport:
    fields: dict = {"model": '"claude-haiku-4-5-20251001"', "complete": True, **captured}
    return MESSAGES_ENDPOINT.read_usage(
        CapturedResponse(
            usage=None if last is None else json.dumps(last),
            usage_start=None if first is None else json.dumps(first),
            **fields,
        )
    )


def test_the_documented_usage_is_read_and_input_includes_what_the_cache_read_and_wrote():
    report = read(DOCUMENTED)
    assert report.exactness is Exactness.EXACT
    assert report.amounts["input_tokens"] == 2095 + 2051 + 2051
    assert report.amounts["cache_write_tokens"] == 2051
    assert report.amounts["cache_write_1h_tokens"] == 51
    assert report.amounts["cache_read_tokens"] == 2051
    assert report.amounts["output_tokens"] == 503
    assert report.served_model == "claude-haiku-4-5-20251001"


@pytest.mark.parametrize(
    "delta",
    [
        {"output_tokens": 503},
        {"output_tokens": 503, "input_tokens": None, "cache_read_input_tokens": None},
        {"output_tokens": 503, "input_tokens": 2095, "cache_creation_input_tokens": 2051},
    ],
)
def test_a_stream_is_its_start_with_what_the_last_delta_tells(delta):
    report = read(delta, START)
    assert report.exactness is Exactness.EXACT
    assert report.tokens == 2095 + 2051 + 2051 + 503


def test_a_delta_that_is_cumulative_is_not_added_to_the_start():
    assert read({"output_tokens": 7, "input_tokens": 10}, {**START, "input_tokens": 3}).tokens == (
        10 + 2051 + 2051 + 7
    )


@pytest.mark.parametrize("captured", [{"complete": False}, {"error": True}])
def test_a_stream_that_was_cut_is_a_lower_bound_whatever_it_told(captured):
    assert read(None, START, **captured).exactness is Exactness.LOWER_BOUND
    assert read({"output_tokens": 5}, START, **captured).exactness is Exactness.LOWER_BOUND


def test_a_stream_without_a_delta_is_a_lower_bound_even_if_it_ended():
    assert read(None, START).exactness is Exactness.LOWER_BOUND


@pytest.mark.parametrize("delta", [{}, {"output_tokens": None}, {"input_tokens": 9}])
def test_a_stream_whose_last_delta_does_not_tell_its_output_is_a_lower_bound(delta):
    assert read(delta, START).exactness is Exactness.LOWER_BOUND


@pytest.mark.parametrize(
    "told",
    [
        {"iterations": [{"type": "message"}, {"type": "compaction", "input_tokens": 180000}]},
        {"iterations": [{"type": "fallback_message", "model": "claude-opus-4-1"}]},
        {"iterations": ["?"]},
        {"inference_geo": "eu"},
    ],
)
def test_what_is_billed_beside_the_root_counts_makes_them_a_lower_bound(told):
    assert read({**DOCUMENTED, **told}).exactness is Exactness.LOWER_BOUND
    assert read({"output_tokens": 3, **told}, START).exactness is Exactness.LOWER_BOUND


def test_a_region_has_its_own_price_in_the_estimate_and_in_what_is_told():
    assert facts(inference_geo="us").price_contexts == (REGIONAL,)
    assert facts(inference_geo="global").price_contexts == ({},)
    assert facts().price_contexts == (REGIONAL,), "the workspace's default may be a region"
    assert facts(inference_geo="us", speed="fast").price_contexts == (
        REGIONAL,
        {"speed": "fast", **REGIONAL},
    )
    report = read({**DOCUMENTED, "inference_geo": "us"})
    assert report.exactness is Exactness.EXACT
    assert report.price_context == {"speed": "standard", **REGIONAL}


def test_iterations_of_the_message_alone_are_in_the_root_counts():
    told = {"iterations": [{"type": "message", "input_tokens": 1}]}
    assert read({**DOCUMENTED, **told}).exactness is Exactness.EXACT


def test_cache_writes_that_are_told_by_their_parts_only_are_input_and_writes():
    usage = {
        "input_tokens": 10,
        "output_tokens": 1,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
    }
    amounts = read(usage).amounts
    assert amounts["input_tokens"] == 60
    assert amounts["cache_write_tokens"] == 50


@pytest.mark.parametrize("bad", [-1, 1.5, 5.0, "5", True, False, [], {}, 10**10])
@pytest.mark.parametrize(
    "path",
    [
        ("input_tokens",), ("output_tokens",), ("cache_creation_input_tokens",),
        ("cache_read_input_tokens",), ("cache_creation", "ephemeral_1h_input_tokens"),
        ("server_tool_use", "web_search_requests"),
    ],
)  # fmt: skip
def test_a_count_that_is_no_plausible_whole_number_makes_all_unknown(path, bad):
    usage: dict = {"input_tokens": 10, "output_tokens": 5}
    holder = usage
    for key in path[:-1]:
        holder = holder.setdefault(key, {})
    holder[path[-1]] = bad
    assert read(usage).exactness is Exactness.UNKNOWN
    assert read({"output_tokens": 5}, usage).exactness is Exactness.UNKNOWN or path == (
        "output_tokens",
    )


@pytest.mark.parametrize("usage", [{}, {"input_tokens": 5}, {"output_tokens": 5}, [], 5, "x"])
def test_a_usage_without_both_sides_is_unknown(usage):
    assert read(usage).exactness is Exactness.UNKNOWN


def test_no_usage_is_unknown():
    assert read(None).exactness is Exactness.UNKNOWN


def test_a_served_speed_decides_the_price():
    assert read({**DOCUMENTED, "speed": "fast"}).price_context == {"speed": "fast"}


@given(st.text() | jsons.map(json.dumps), st.text() | jsons.map(json.dumps))
def test_whatever_was_captured_there_is_a_report(last, first):
    MESSAGES_ENDPOINT.read_usage(CapturedResponse(last, first, last, first, complete=True))


def test_a_refusal_has_the_shape_that_the_sdk_reads():
    body = json.loads(
        ANTHROPIC.refusal_body(Refusal(429, Reason.BUDGET_HELD, "held", "d-1", {"budget": "b"}))
    )
    assert body == {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "message": "held",
            "code": "budget_held",
            "budget": "b",
        },
        "request_id": "d-1",
    }
