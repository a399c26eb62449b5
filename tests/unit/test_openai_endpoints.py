"""OpenAI's smaller endpoints: what bounds a call to each, and what its answer tells."""

import json
from typing import Any

import pytest

from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

OPENAI = ADAPTERS["openai"]


def read(endpoint: str, **fields: Any) -> RequestFacts:
    body = json.dumps({"model": "m", **fields}).encode()
    return OPENAI.read_request(endpoint, Request(body))


def told(endpoint: str, usage: Any, **fields: Any) -> UsageReport:
    found = OPENAI.endpoint(endpoint)
    assert found is not None
    return found.read_usage(CapturedResponse(usage=json.dumps(usage), complete=True, **fields))


@pytest.mark.parametrize(
    ("prompt", "answers"),
    [
        ("one", 1),
        (None, 1),
        (["one", "two", "three"], 3),
        ([1, 2, 3], 1),
        ([[1, 2], [3]], 2),
    ],
)
def test_each_prompt_of_a_completion_is_an_answer(prompt, answers):
    assert read("completions", prompt=prompt).answers == answers


@pytest.mark.parametrize(("fields", "answers"), [({"n": 3}, 3), ({"best_of": 5, "n": 2}, 5)])
def test_all_of_best_of_are_billed(fields, answers):
    assert read("completions", prompt=["a", "b"], **fields).answers == answers * 2


def test_a_completion_has_one_name_for_its_cap_and_its_stream_is_asked_for_usage():
    facts = read("completions", prompt="a", max_tokens=5, stream=True)
    assert facts.output_tokens_cap == 5
    assert len(facts.edits) == 1
    uncapped = read("completions", prompt="a")
    assert uncapped.cap_slot is not None
    assert uncapped.cap_slot.before == '"max_tokens":'


def test_a_completion_that_names_no_cap_is_bounded_by_the_servers_own_default():
    """Else what is written as a cap would let it answer more than it would have."""
    assert read("completions", prompt="a").output_tokens_cap == 16
    request = Request(b'{"model":"m","prompt":"a"}')
    assert ADAPTERS["vllm"].read_request("completions", request).output_tokens_cap == 16
    assert ADAPTERS["ollama"].read_request("completions", request).output_tokens_cap is None


@pytest.mark.parametrize("prompt", [7, [], {}, True])
def test_a_prompt_is_a_text_or_a_list(prompt):
    with pytest.raises(RequestError) as caught:
        read("completions", prompt=prompt)
    assert caught.value.reason is Reason.UNPARSEABLE_BODY


def test_an_embedding_has_no_output_and_needs_no_price_for_it():
    facts = read("embeddings", input=["hello", "world"])
    assert facts.output_tokens_cap == 0
    assert facts.bills == ("input_mtok",)
    report = told("embeddings", {"prompt_tokens": 9, "total_tokens": 9})
    assert report.exactness is Exactness.EXACT
    assert report.amounts["input_tokens"] == 9
    assert report.amounts.get("output_tokens", 0) == 0


def test_images_are_each_a_call_of_their_own():
    one, three = read("images", prompt="a cat"), read("images", prompt="a cat", n=3)
    assert one.input_tokens_max is not None
    assert three.input_tokens_max is not None
    assert three.input_tokens_max >= 3 * one.input_tokens_max
    assert three.answers == 3
    assert three.media


def test_an_image_tells_its_tokens_by_kind():
    usage = {
        "input_tokens": 12, "input_tokens_details": {"text_tokens": 12, "image_tokens": 0},
        "output_tokens": 4160, "total_tokens": 4172,
    }  # fmt: skip
    report = told("images", usage)
    assert report.exactness is Exactness.EXACT
    assert report.amounts["output_tokens"] == 4160


def test_a_stream_of_several_images_is_refused():
    with pytest.raises(RequestError) as caught:
        read("images", prompt="a cat", n=2, stream=True)
    assert caught.value.reason is Reason.UNMETERED_ENDPOINT


def test_speech_is_told_by_its_characters():
    facts = read("speech", input="h\u00e9llo \U0001f600", voice="alloy")
    assert facts.bills == ("input_mchars",)
    assert facts.counted == {"input_characters": 8}  # a smile is two, however they are counted
    assert told("speech", {"input_tokens": 1}) == UNKNOWN_USAGE


@pytest.mark.parametrize("endpoint", ["completions", "embeddings", "images", "speech"])
def test_a_parameter_that_is_not_known_is_refused(endpoint):
    with pytest.raises(RequestError) as caught:
        read(endpoint, input="x", prompt="x", whatever_comes_next=1)
    assert caught.value.reason is Reason.UNMETERED_ENDPOINT


@pytest.mark.parametrize(
    "fields",
    [
        {name: 1}
        for name in (
            "web_search_options", "web_search", "search_parameters", "enable_search", "plugins",
            "models", "fallbacks", "route", "provider", "background", "deferred", "moderation",
            "safety_model", "compound_custom", "nobody_knows",
        )
    ],
    ids=str,
)  # fmt: skip
def test_a_chat_takes_only_parameters_that_are_known_to_be_bounded(fields):
    with pytest.raises(RequestError) as caught:
        read("chat", messages=[], **fields)
    assert caught.value.reason is Reason.UNMETERED_ENDPOINT


def test_a_chat_takes_every_parameter_of_the_sdk_that_is_bounded():
    fields = {
        "metadata": {}, "store": True, "seed": 1, "user": "u", "top_p": 1, "logprobs": True,
        "verbosity": "low", "prompt_cache_key": "k", "safety_identifier": "s", "stop": ["x"],
        "prediction": {"type": "content", "content": "x"}, "parallel_tool_calls": True,
        "reasoning_effort": "low", "modalities": ["text"], "service_tier": "flex",
        "web_search_options": None,
    }  # fmt: skip
    assert read("chat", messages=[], **fields).model == "m"
