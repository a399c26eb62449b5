"""Servers that speak OpenAI's API: where each differs, a call is bounded all the same."""

import json
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import data_snapshot

from extauthz.pricing import OwnPrice, PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.compatible import COMPATIBLE
from extauthz.providers.openai.usage import told_cost_usd
from extauthz.reasons import Reason
from extauthz.usage import Exactness, UsageReport

NOW = 1_790_000_000_000
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


def read(api: str, **fields: Any) -> RequestFacts:
    body = json.dumps({"model": "m", "messages": [], **fields}).encode()
    return ADAPTERS[api].read_request("chat", Request(body))


def report(api: str, usage: Any, model: str = "m") -> UsageReport:
    endpoint = ADAPTERS[api].endpoints[0]
    return endpoint.read_usage(
        CapturedResponse(usage=json.dumps(usage), model=json.dumps(model), complete=True)
    )


@pytest.mark.parametrize("api", COMPATIBLE)
def test_every_one_serves_a_chat_and_its_price_list_exists(api):
    adapter = ADAPTERS[api]
    route = adapter.route("POST", "/v1/chat/completions")
    assert route is not None
    assert route.endpoint.name == "chat"
    assert adapter.route("GET", "/v1/models/org/model-1") is not None
    assert adapter.route("GET", "/v1/models/../x") is None
    assert adapter.route("POST", "/v1/responses") is None
    providers = data_snapshot.get_snapshot().providers
    assert data_snapshot.find_provider_by_id(providers, adapter.price_provider) is not None


@pytest.mark.parametrize("api", COMPATIBLE)
def test_usage_of_the_common_shape_is_read_of_every_one(api):
    told = report(api, USAGE)
    assert told.exactness is Exactness.EXACT
    assert told.tokens == 120


@pytest.mark.parametrize("api", ["mistral", "deepseek", "together", "perplexity", "ollama"])
def test_a_cap_under_a_name_that_the_server_passes_over_bounds_nothing(api):
    facts = read(api, max_completion_tokens=5)
    assert facts.output_tokens_cap is None
    assert facts.cap_slot is not None
    assert facts.cap_slot.before == '"max_tokens":'
    assert read(api, max_tokens=7, max_completion_tokens=5).output_tokens_cap == 7
    assert read(api, max_tokens=5, max_completion_tokens=7).output_tokens_cap == 5


@pytest.mark.parametrize(
    ("api", "asked"),
    [("mistral", False), ("perplexity", False), ("groq", True), ("openrouter", True)],
)
def test_only_who_knows_stream_options_is_asked_for_usage(api, asked):
    assert bool(read(api, stream=True).edits) is asked


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        ("openrouter", {"models": ["a", "b"]}),
        ("openrouter", {"route": "fallback"}),
        ("openrouter", {"provider": {"order": ["x"]}}),
        ("openrouter", {"plugins": [{"id": "web"}]}),
        ("openrouter", {"model": "openrouter/auto"}),
        ("openrouter", {"model": "openai/gpt-4o:online"}),
        ("openrouter", {"model": "openai/gpt-4o:nitro"}),
        ("xai", {"deferred": True}),
        ("xai", {"search_parameters": {"mode": "on"}}),
        ("groq", {"model": "groq/compound"}),
        ("groq", {"service_tier": "gold"}),
        ("together", {"safety_model": "guard"}),
        ("perplexity", {"model": "sonar-deep-research"}),
        ("mistral", {"service_tier": "priority"}),
        ("mistral", {"tools": [{"type": "web_search"}]}),
        ("vllm", {"use_beam_search": True}),
    ],
)
def test_what_the_server_may_choose_by_itself_is_refused(api, fields):
    with pytest.raises(RequestError) as caught:
        read(api, **fields)
    assert caught.value.reason is Reason.UNMETERED_ENDPOINT


def test_reasoning_that_a_server_leaves_out_of_its_completion_tokens_is_billed():
    told = report(
        "xai",
        {
            "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 35,
            "completion_tokens_details": {"reasoning_tokens": 20},
        },
    )  # fmt: skip
    assert told.exactness is Exactness.EXACT
    assert told.amounts["output_tokens"] == 25


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        ({"cost": 0.00014}, Decimal("0.00014")),
        ({"cost": 0}, Decimal(0)),
        ({"cost": 0.1, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}}, "0.3"),
        ({"cost": 0.1, "is_byok": False, "cost_details": {"upstream_inference_cost": 9}}, "0.1"),
        ({"cost": {"total_cost": 0.006}}, Decimal("0.006")),
        ({"cost": "0.1"}, None),
        ({"cost": -1}, None),
        ({"cost": True}, None),
        ({}, None),
    ],
)
def test_the_cost_that_a_provider_tells_is_read_in_usd(usage, usd):
    assert told_cost_usd(usage) == (None if usd is None else Decimal(usd))


@pytest.mark.parametrize(
    ("cost", "nanousd"), [(0.5, 500_000_000), (0.000001, 120_000), (None, 120_000)]
)
def test_the_larger_of_the_told_cost_and_the_list_price_is_charged(cost, nanousd):
    priced = PriceBook([OwnPrice("p", "m", Decimal(1), Decimal(1))]).find("p", "openrouter", "m")
    assert priced is not None
    told = report("openrouter", {**USAGE, "cost": cost})
    assert priced.cost(told, NOW) == nanousd


def test_only_a_provider_that_tells_its_cost_is_believed_about_it():
    assert report("groq", {**USAGE, "cost": 5}).told_cost_usd is None


def test_a_search_that_is_sold_by_the_call_is_reckoned_once_for_each():
    priced = PriceBook([]).find("perplexity", "perplexity", "sonar")
    assert priced is not None
    facts = read("perplexity", model="sonar", max_tokens=20)
    told = report("perplexity", {**USAGE, "num_search_queries": 3}, "sonar")
    assert priced.covers(facts, NOW)
    cost = priced.cost(told, NOW)
    assert cost == 12_000_000 + 120_000  # 12 USD for a thousand calls, 1 USD per million tokens
    assert priced.estimate(facts, NOW, None).nanousd >= cost


def test_a_local_server_may_cost_nothing():
    book = PriceBook([OwnPrice("local", "*", Decimal(0), Decimal(0))])
    priced = book.find("local", ADAPTERS["ollama"].price_provider, "llama3.2")
    assert priced is not None
    assert priced.estimate(read("ollama"), NOW, None).nanousd == 0
