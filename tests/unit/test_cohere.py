"""Cohere's chat: what bounds a call, and what its answer tells."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Request, RequestError
from extauthz.usage import Exactness, UsageReport

COHERE = ADAPTERS["cohere"]
HELLO = [{"role": "user", "content": "hello"}]
AT_MS = 1_780_000_000_000


def read(**fields: Any):
    body = json.dumps({"model": "command-a-03-2025", "messages": HELLO, **fields}).encode()
    return COHERE.read_request("chat", Request(body))


def told(usage: Any, **captured: Any) -> UsageReport:
    given = {"usage": json.dumps(usage), "complete": True, **captured}
    return COHERE.endpoints[0].read_usage(CapturedResponse(**given))


def test_a_chat_is_bounded_by_its_bytes_and_its_cap():
    facts = read(max_tokens=9, stream=True, documents=[{"data": {"text": "a"}}])
    assert facts.input_tokens_max is not None
    assert (facts.output_tokens_cap, facts.stream, facts.media) == (9, True, False)
    assert facts.cap_slot is not None
    assert facts.cap_slot.edit(7).text == "7"
    assert read().cap_slot is not None
    assert read(thinking={"type": "enabled", "token_budget": 500}).thinking_tokens == 500
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert read(messages=[{"role": "user", "content": [picture]}]).input_tokens_max is None


@pytest.mark.parametrize(
    "fields",
    [
        {"connectors": [{"id": "web-search"}]},
        {"tools": [{"type": "web_search"}]},
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        {"max_tokens": "9"},
    ],
    ids=str,
)
def test_what_is_not_known_to_be_bounded_is_refused(fields):
    with pytest.raises(RequestError):
        read(**fields)


def embedding(**fields: Any):
    body = json.dumps({"model": "embed-v4.0", "input_type": "search_query", **fields}).encode()
    return COHERE.read_request("embed", Request(body))


def test_an_embedding_is_bounded_by_its_bytes():
    facts = embedding(texts=["hello"] * 96, truncate="END", max_tokens=9)
    assert facts.input_tokens_max is not None
    assert facts.input_tokens_max > 96 * 5
    assert (facts.output_tokens_cap, facts.bills) == (0, ("input_mtok",))


@pytest.mark.parametrize(
    "fields",
    [
        {"images": ["data:..."]},
        {"inputs": [{"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        {"inputs": [{"content": [{"type": "text", "text": "a", "image_url": "data:"}]}]},
        {"inputs": [{"content": [{"type": "text", "text": {"a": 1}}]}]},
        {"inputs": ["hello"]},
        {"texts": [["hello"]]},
        {"texts": "hello"},
        {"an_unheard_of": 1},
    ],
    ids=str,
)
def test_an_embedding_of_more_than_text_is_refused(fields):
    with pytest.raises(RequestError):
        embedding(**fields)


@pytest.mark.parametrize(
    ("units", "exactness"),
    [
        ({"input_tokens": 5}, Exactness.EXACT),
        ({"input_tokens": 5, "text_tokens": 5, "images": 0}, Exactness.EXACT),
        ({"input_tokens": 5, "image_tokens": 7}, Exactness.LOWER_BOUND),
        ({"input_tokens": 5, "images": 1}, Exactness.LOWER_BOUND),
        ({"input_tokens": 5.5}, Exactness.UNKNOWN),
        ({"input_tokens": -5}, Exactness.UNKNOWN),
        ({}, Exactness.UNKNOWN),
    ],
    ids=str,
)
def test_an_embedding_is_billed_for_its_text(units, exactness):
    endpoint = COHERE.endpoint("embed")
    assert endpoint is not None
    report = endpoint.read_usage(CapturedResponse(usage=json.dumps(units), complete=True))
    assert report.exactness is exactness
    assert exactness is Exactness.UNKNOWN or report.amounts == {"input_tokens": 5}


# The reference's sample: https://docs.cohere.com/reference/chat
SAMPLE = {
    "billed_units": {"input_tokens": 5, "output_tokens": 418},
    "tokens": {"input_tokens": 71, "output_tokens": 418},
}


def test_the_billed_units_are_what_is_charged():
    report = told(SAMPLE)
    assert report.exactness is Exactness.EXACT
    priced = PriceBook([]).find("cohere", "cohere", "command-a-03-2025")
    assert priced is not None
    assert priced.cost(report, AT_MS) == 5 * 2500 + 418 * 10_000


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"tokens": {"input_tokens": 1, "output_tokens": 1}},
        {"billed_units": {"input_tokens": 1}},
        {"billed_units": {"input_tokens": "1", "output_tokens": 1}},
        {"billed_units": 7},
    ],
    ids=str,
)
def test_usage_that_is_odd_is_unknown(usage):
    assert told(usage).exactness is Exactness.UNKNOWN


@pytest.mark.parametrize(
    ("usage", "captured"),
    [
        (SAMPLE, {"complete": False}),
        (SAMPLE, {"error": True}),
        ({"billed_units": {"input_tokens": 1, "output_tokens": 1, "search_units": 1}}, {}),
    ],
)
def test_usage_that_is_not_the_whole_bill_is_a_lower_bound(usage, captured):
    assert told(usage, **captured).exactness is Exactness.LOWER_BOUND


@given(st.text(max_size=300), st.integers(1, 4000), st.data())
def test_no_answer_costs_more_than_its_estimate(text, cap, data):
    facts = read(messages=[{"role": "user", "content": text}], max_tokens=cap)
    priced = PriceBook([]).find("cohere", "cohere", facts.model)
    assert priced is not None
    billed = {
        "input_tokens": data.draw(st.integers(0, len(text.encode()))),
        "output_tokens": data.draw(st.integers(0, cap)),
    }
    report = told({"billed_units": billed})
    assert priced.estimate(facts, AT_MS, None).nanousd >= priced.cost(report, AT_MS)


@pytest.mark.parametrize(
    ("model", "thinking", "beside"),
    [
        ("command-a-03-2025", None, 0),
        ("command-r7b-arabic-02-2025", None, 0),
        ("command-a-reasoning-08-2025", None, 32_000),
        ("command-a-plus-05-2026", None, 32_000),
        ("command-a-reasoning-08-2025", {"type": "disabled"}, 0),
        ("command-a-reasoning-08-2025", {"type": "enabled", "token_budget": 500}, 500),
        ("command-a-03-2025", {"type": "enabled"}, 32_000),
    ],
)
def test_thoughts_are_reckoned_beside_the_cap(model, thinking, beside):
    """Whether `max_tokens` bounds them too is not documented."""
    assert read(model=model, max_tokens=100, thinking=thinking).extra_output_tokens == beside
