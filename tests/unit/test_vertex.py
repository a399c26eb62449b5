"""Vertex AI: which paths are metered, and as what."""

import json
from typing import Any

import pytest

from extauthz.providers import ADAPTERS
from extauthz.providers.base import REGIONAL, CapturedResponse, Request, RequestError
from extauthz.usage import Exactness

VERTEX = ADAPTERS["vertex"]
PLACE = "/v1/projects/my-project/locations"
HAIKU = "claude-haiku-4-5@20251001"
MESSAGE = {"anthropic_version": "vertex-2023-10-16", "max_tokens": 9, "messages": []}


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        (f"{PLACE}/global/publishers/google/models/m:generateContent", "generate_content"),
        (f"{PLACE}/us-central1/publishers/google/models/m:generateContent",
         "generate_content_in_region"),
        (
            "/v1beta1/projects/p/locations/global/publishers/google/models/m:streamGenerateContent",
            "stream_generate_content",
        ),
        (f"{PLACE}/global/publishers/anthropic/models/{HAIKU}:rawPredict", "raw_predict"),
        (f"{PLACE}/global/publishers/anthropic/models/{HAIKU}:streamRawPredict",
         "stream_raw_predict"),
        (f"{PLACE}/global/publishers/anthropic/models/count-tokens:rawPredict",
         "count_message_tokens"),
        (f"{PLACE}/us-east5/publishers/anthropic/models/{HAIKU}:rawPredict",
         "raw_predict_in_region"),
        (f"{PLACE}/eu/publishers/anthropic/models/{HAIKU}:streamRawPredict",
         "stream_raw_predict_in_region"),
        (f"{PLACE}/us-east5/../global/publishers/anthropic/models/{HAIKU}:rawPredict", None),
        (f"{PLACE}/global/publishers/meta/models/llama:rawPredict", None),
        (f"{PLACE}/global/publishers/google/models/m:predict", None),
        (f"{PLACE}/global/publishers/google/models/text-embedding-005:predict", None),
        (f"{PLACE}/global/publishers/google/models/gemini-embedding-001:predict", "predict"),
        (f"{PLACE}/us-central1/publishers/google/models/gemini-embedding-001:predict",
         "predict_in_region"),
        (f"{PLACE}/global/endpoints/1:generateContent", None),
        (f"{PLACE}/global/batchPredictionJobs", None),
    ],
)  # fmt: skip
def test_the_path_names_the_endpoint(path, endpoint):
    route = VERTEX.route("POST", path)
    assert (route and route.endpoint.name) == endpoint


def test_a_message_takes_its_model_from_the_path():
    body = json.dumps({**MESSAGE, "stream": True}).encode()
    facts = VERTEX.read_request("stream_raw_predict", Request(body, HAIKU))
    assert (facts.model, facts.output_tokens_cap, facts.stream) == (HAIKU, 9, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True},
        {"model": "claude-opus-4-1"},
        {"anthropic_version": None},
        {"anthropic_beta": ["context-1m-2025-08-07"]},
    ],
    ids=str,
)
def test_a_message_that_is_not_what_its_path_says_is_refused(fields):
    body = json.dumps({**MESSAGE, **fields}).encode()
    with pytest.raises(RequestError):
        VERTEX.read_request("raw_predict", Request(body, HAIKU))


def test_within_a_region_the_estimate_and_the_bill_are_regional():
    body = json.dumps(MESSAGE).encode()
    facts = VERTEX.read_request("raw_predict_in_region", Request(body, HAIKU))
    endpoint = VERTEX.endpoint("raw_predict_in_region")
    assert endpoint is not None
    report = endpoint.read_usage(CapturedResponse(usage='{"input_tokens":1,"output_tokens":1}'))
    assert facts.price_contexts == (REGIONAL,)
    assert report.price_context == REGIONAL


TEXT = {"content": "hello", "task_type": "RETRIEVAL_QUERY"}


def predict(*instances: Any, **fields: Any):
    body = json.dumps({"instances": list(instances), **fields}).encode()
    return VERTEX.read_request("predict", Request(body, "gemini-embedding-001"))


def test_one_text_to_be_embedded_is_bounded_by_its_bytes():
    facts = predict(TEXT, parameters={"outputDimensionality": 64})
    assert facts.input_tokens_max is not None
    assert facts.input_tokens_max > len("hello")
    assert (facts.output_tokens_cap, facts.bills) == (0, ("input_mtok",))


@pytest.mark.parametrize(
    ("instances", "fields"),
    [
        ([], {}),
        ([TEXT, TEXT], {}),
        ([{"content": ["hello"]}], {}),
        ([{"content": "hello", "image": {}}], {}),
        ([{**TEXT, "taskType": "x"}], {}),
        ([TEXT], {"labels": {}}),
        ([TEXT], {"parameters": {"sampleCount": 9}}),
    ],
    ids=str,
)
def test_what_is_not_one_text_is_refused(instances, fields):
    with pytest.raises(RequestError):
        predict(*instances, **fields)


@pytest.mark.parametrize(
    ("statistics", "tokens"),
    [
        ({"truncated": False, "token_count": 6}, 6),
        ({"token_count": 6.0}, 6),
        ({"token_count": 6.5}, None),
        ({"token_count": -6}, None),
        ({"token_count": "6"}, None),
        ({"token_count": True}, None),
        ({}, None),
    ],
    ids=str,
)
def test_an_embeddings_tokens_are_those_of_its_text(statistics, tokens):
    endpoint = VERTEX.endpoint("predict")
    assert endpoint is not None
    report = endpoint.read_usage(CapturedResponse(usage=json.dumps(statistics), complete=True))
    assert report.amounts.get("input_tokens") == tokens
    assert (report.exactness is Exactness.EXACT) is (tokens is not None)
