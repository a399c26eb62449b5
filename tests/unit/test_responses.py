"""What of a response request bounds its cost, and what of its answer is its usage."""

import json
from typing import Any

import pytest

from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, Exactness

OPENAI = ADAPTERS["openai"]
USAGE = {
    "input_tokens": 100, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 5}, "total_tokens": 120,
}  # fmt: skip


def body_of(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "input": "hi", **fields}).encode()


def read(**fields: Any) -> RequestFacts:
    return OPENAI.read_request("responses", Request(body_of(**fields)))


def reason_of(**fields: Any) -> Reason:
    with pytest.raises(RequestError) as caught:
        read(**fields)
    return caught.value.reason


def text(words: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": kind, "text": words}]}


def test_the_bytes_bound_the_input_and_the_cap_the_output():
    facts = read(max_output_tokens=77, input=[text("hello"), {"role": "user", "content": "x"}])
    assert facts.output_tokens_cap == 77
    assert facts.input_tokens_max is not None
    assert not facts.media
    assert facts.edits == ()


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "4"},
        {"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_text", "text": "4"}]},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "4"},
        {"type": "local_shell_call_output", "id": "c", "output": "4"},
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "gAAAA"},
        text("said", "output_text"),
    ],
)  # fmt: skip
def test_items_that_stand_in_the_request_are_bounded_by_its_bytes(item):
    assert read(input=[item]).input_tokens_max is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"id": "msg_1"}]},
        {"input": [{"type": "message", "id": "msg_1"}]},
        {"input": [{"role": "assistant", "id": "msg_1", "content": None}]},
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]},
        {"input": [{"type": "reasoning", "id": "rs_1", "encrypted_content": ""}]},
        {"input": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}]},
        {"input": [{"type": "nobody_knows", "content": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        {"input": [{"type": 7}]},
    ],
)  # fmt: skip
def test_what_the_provider_has_stored_is_bounded_by_the_context_window_only(fields):
    facts = read(**fields)
    assert facts.input_tokens_max is None
    assert facts.media


PICTURE = {"type": "input_image", "image_url": "u"}


@pytest.mark.parametrize(
    ("fields", "pictures"),
    [
        ({"input": [{"role": "user", "content": [PICTURE, PICTURE]}]}, 2),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, 1),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [PICTURE]}]}, 1),
        # What is stored, or is no picture, may be anything.
        ({"input": [{"id": "msg_1", "content": [PICTURE]}]}, 0),
        ({"input": [{"role": "user", "content": [PICTURE]}], "previous_response_id": "r"}, 0),
        ({"input": [{"role": "user", "content": [PICTURE, {"type": "input_file"}]}]}, 0),
    ],
)
def test_pictures_are_counted_where_nothing_but_text_is_beside_them(fields, pictures):
    facts = read(**fields)
    assert facts.media
    assert (facts.images, facts.input_tokens_max is None) == (pictures, pictures == 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"background": True},
        {"prompt": {"id": "pmpt_1"}},
        {"context_management": [{"type": "compaction"}]},
        {"background_options": {}},
        {"reasoning": {"mode": "pro"}},
        {"reasoning": {"samples": 4}},
        {"service_tier": "warp"},
        {"whatever_comes_next": 1},
        {"model": "o3-deep-research"},
        *(
            {"tools": [{"type": kind}]}
            for kind in (
                "web_search", "web_search_preview", "web_search_2025_08_26", "file_search",
                "code_interpreter", "image_generation", "mcp", "shell", "tool_search", "computer",
                "computer_use_preview", "namespace", None, 7,
            )
        ),
        {"tools": ["web_search"]},
    ],
)  # fmt: skip
def test_what_is_not_bounded_is_refused(fields):
    assert reason_of(**fields) is Reason.UNMETERED_ENDPOINT


@pytest.mark.parametrize(
    "fields",
    [
        {"background": False, "store": False, "include": ["reasoning.encrypted_content"]},
        {"reasoning": {"effort": "high", "summary": "auto", "mode": "standard"}},
        {
            "tools": [
                {"type": kind} for kind in ("function", "custom", "local_shell", "apply_patch")
            ]
        },
        {"service_tier": "flex", "truncation": "auto", "text": {"verbosity": "low"}},
        {"context_management": None},
    ],
)
def test_what_is_bounded_is_let_through(fields):
    assert read(**fields).model == "gpt-4o"


@pytest.mark.parametrize(
    "fields",
    [
        {"input": 7},
        {"input": [7]},
        {"max_output_tokens": 0},
        {"reasoning": []},
        {"instructions": []},
    ],
)
def test_what_is_no_such_request_is_unparseable(fields):
    assert reason_of(**fields) is Reason.UNPARSEABLE_BODY


def test_a_default_cap_is_written_under_the_name_that_the_endpoint_obeys():
    body = body_of()
    slot = OPENAI.read_request("responses", Request(body)).cap_slot
    assert slot is not None
    edit = slot.edit(9)
    edited = body[: edit.offset] + edit.text.encode() + body[edit.offset + edit.dropped :]
    assert json.loads(edited)["max_output_tokens"] == 9


def report(usage: Any, **fields: Any):
    endpoint = OPENAI.endpoint("responses")
    assert endpoint is not None
    return endpoint.read_usage(CapturedResponse(usage=json.dumps(usage), **fields))


def test_the_usage_of_a_response_is_exact_wherever_the_client_hung_up_after_it():
    told = report(USAGE, complete=False, model='"gpt-4o-2024-08-06"', service_tier='"flex"')
    assert told.exactness is Exactness.EXACT
    assert told.amounts == {
        "input_tokens": 100, "output_tokens": 20, "cache_read_tokens": 40,
        "output_reasoning_tokens": 5,
    }  # fmt: skip
    assert told.served_model == "gpt-4o-2024-08-06"
    assert told.price_context == {"service_tier": "flex"}


@pytest.mark.parametrize(
    "usage", [{}, {"input_tokens": 1}, {**USAGE, "output_tokens": -1}, {**USAGE, "total_tokens": 1}]
)
def test_usage_that_contradicts_itself_is_unknown(usage):
    assert report(usage) == UNKNOWN_USAGE
