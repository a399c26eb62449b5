"""Servers that speak OpenAI's API: where each differs, a call is bounded all the same."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import data_snapshot

from extauthz.pricing import OwnPrice, PriceBook, RateLimits, estimate_of, rate_limits
from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.compatible import COMPATIBLE
from extauthz.providers.openai.usage import told_cost_usd
from extauthz.reasons import Reason
from extauthz.service.capping import with_price_limit
from extauthz.usage import Exactness, UsageReport

NOW, LATER = 1_790_000_000_000, 1_795_000_000_000
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


def holding(kind, **fields):
    """Messages with a part of this kind."""
    return [{"role": "user", "content": [{"type": kind, **fields}]}]


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
    (other,) = facts.other_caps  # should it obey that after all, it is lowered too
    assert other.edit(3).text == "3"
    assert other.edit(900).text == "5"
    assert read(api, max_tokens=7, max_completion_tokens=5).output_tokens_cap == 7
    assert read(api, max_tokens=5, max_completion_tokens=7).output_tokens_cap == 7


@pytest.mark.parametrize(
    ("api", "asked"),
    [("mistral", False), ("perplexity", False), ("groq", True), ("openrouter", True)],
)
def test_only_who_knows_stream_options_is_asked_for_usage(api, asked):
    assert bool(read(api, stream=True).edits) is asked


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        ("openrouter", {"models": ["a", "openrouter/auto"]}),
        ("openrouter", {"models": ["a", "b:online"]}),
        ("openrouter", {"models": ["a"] * 17}),
        ("openrouter", {"route": "sort"}),
        ("openrouter", {"provider": {"order": ["x"], "max_price": {"prompt": 0}}}),
        ("openrouter", {"provider": {"an_unheard_of": "preference"}}),
        ("groq", {"models": ["a"]}),
        ("openrouter", {"plugins": [{"id": "web"}]}),
        ("openrouter", {"model": "openrouter/auto"}),
        ("openrouter", {"model": "openai/gpt-4o:online"}),
        ("openrouter", {"model": "openai/gpt-4o:nitro"}),
        ("openrouter", {"model": "@preset/mine"}),
        ("openrouter", {"model": "openai/gpt-4o@preset/mine"}),
        ("openrouter", {"models": ["a", "@Preset/mine"]}),
        ("openrouter", {"preset": "mine"}),
        ("openrouter", {"model": "x-ai/grok-4.20-multi-agent"}),
        ("openrouter", {"model": "google/gemini-2.5-flash-image"}),
        ("openrouter", {"model": "google/gemini-nano-banana-2.1"}),
        ("openrouter", {"model": "openai/gpt-audio"}),
        ("openrouter", {"model": "google/lyria-3-pro-preview"}),
        ("openrouter", {"model": "google/gemini-omni-1.2-flash"}),
        ("openrouter", {"modalities": ["text", "image"]}),
        ("openrouter", {"modalities": ["text", "audio"], "audio": {"voice": "a", "format": "mp3"}}),
        ("openrouter", {"messages": holding("input_audio", input_audio={"data": "AA=="})}),
        ("openrouter", {"messages": holding("video_url", video_url={"url": "https://a/b.mp4"})}),
        ("openrouter", {"messages": holding("thinking", thinking="x")}),
        ("openrouter", {"messages": [{"role": "assistant", "images": [{"type": "image_url"}]}]}),
        ("openrouter", {"messages": [{"role": "user", "content": {"type": "input_audio"}}]}),
        ("openrouter", {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}),
        ("xai", {"deferred": True}),
        ("xai", {"search_parameters": {"mode": "on"}}),
        ("groq", {"model": "groq/compound"}),
        ("groq", {"service_tier": "gold"}),
        ("together", {"safety_model": "guard"}),
        ("perplexity", {"model": "sonar-deep-research"}),
        ("perplexity", {"model": "perplexity/sonar"}),
        ("perplexity", {"model": "sonar-pro", "web_search_options": {"search_type": "pro"}}),
        ("openrouter", {"model": "openai/gpt-4o-search-preview"}),
        ("openrouter", {"messages": holding("file", file={"file_data": "https://a/b.pdf"})}),
        ("xai", {"messages": holding("file", file={"file_id": "f"})}),
        ("mistral", {"messages": holding("document_url", document_url="https://a/b.pdf")}),
        ("mistral", {"service_tier": "priority"}),
        ("mistral", {"tools": [{"type": "web_search"}]}),
        ("vllm", {"use_beam_search": True}),
    ],
)
def test_what_the_server_may_choose_by_itself_is_refused(api, fields):
    with pytest.raises(RequestError) as caught:
        read(api, **fields)
    assert caught.value.reason is Reason.UNMETERED_ENDPOINT


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"models": ["b", "c"]}, ("m", "b", "c")),
        ({"models": ["b", "m", "b"], "route": "fallback"}, ("m", "b")),
        ({"model": None, "models": ["b", "c"]}, ("b", "c")),
        ({"models": None}, ("m",)),
    ],
)
def test_every_model_that_a_router_may_fall_back_to_is_known(fields, names):
    facts = read("openrouter", **fields)
    assert (facts.model, *facts.fallback_models) == names


@pytest.mark.parametrize(
    "fields",
    [{"model": None}, {"model": None, "models": []}, {"models": [5]}, {"models": "b"},
     {"provider": "x"}],
)  # fmt: skip
def test_a_router_is_told_a_model(fields):
    with pytest.raises(RequestError) as caught:
        read("openrouter", **fields)
    assert caught.value.reason is Reason.UNPARSEABLE_BODY


@pytest.mark.parametrize(
    "provider", [{}, None, {"order": ["x"], "allow_fallbacks": False}, "left out"], ids=str
)
@pytest.mark.parametrize(
    ("messages", "pictures"),
    [
        ([], {}),
        (holding("text", text="x"), {}),
        (holding("image_url", image_url={"url": "https://a/b.png"}), {"image": 0}),
    ],
    ids=["no message", "a text", "a picture"],
)
def test_a_router_is_told_the_highest_price_beside_what_the_client_prefers(
    provider, messages, pictures
):
    body = {"model": "m", "messages": messages, "stream": True}
    body |= {} if provider == "left out" else {"provider": provider}
    text = json.dumps(body).encode()
    facts = ADAPTERS["openrouter"].read_request("chat", Request(text))
    limited = with_price_limit(facts, RateLimits(Decimal("0.15"), Decimal("0.60")))

    for edit in sorted(limited.edits, key=lambda each: -each.offset):
        text = text[: edit.offset] + edit.text.encode() + text[edit.offset + edit.dropped :]

    limit = {"max_price": {"prompt": 0.15, "completion": 0.6, "request": 0} | pictures}
    kept = provider if isinstance(provider, dict) else {}
    options = {"stream_options": {"include_usage": True}}
    assert json.loads(text) == {**body, "provider": {**kept, **limit}, **options}


def test_the_highest_price_of_a_prompt_is_that_of_a_short_one():
    """Who asks the price of a long one for a short one may ask more still for a long one."""
    priced = PriceBook([]).find("openrouter", "openrouter", "google/gemini-2.5-pro")
    assert priced is not None
    long_text = [{"role": "user", "content": "x" * 200_000}]
    facts = read("openrouter", model="google/gemini-2.5-pro", messages=long_text, max_tokens=1)
    bound = priced.bound(facts, LATER, None)
    assert rate_limits([bound]) == (Decimal("1.25"), Decimal(10))
    estimate = estimate_of([bound], facts)
    assert estimate.nanousd >= 200_000 * 2_500  # as it is reserved


def test_whoever_answers_within_the_limits_costs_no_more_than_the_estimate():
    """Each of two models may be had at the input price of the one and the output price of both."""
    prices = [
        OwnPrice("p", "a", Decimal(1), Decimal(10)),
        OwnPrice("p", "b", Decimal(5), Decimal(2)),
    ]
    book = PriceBook(prices)
    facts = read("openrouter", model="a", models=["b"], max_tokens=1000)
    each = [book.find("p", "openrouter", name) for name in ("a", "b")]
    bounds = [one.bound(facts, NOW, None) for one in each if one]
    assert rate_limits(bounds) == (Decimal(5), Decimal(10))
    estimate = estimate_of(bounds, facts)
    assert estimate.nanousd == estimate.input_tokens * 5_000 + 1000 * 10_000
    assert estimate.nanousd_under.at(500) == estimate.input_tokens * 5_000 + 500 * 10_000


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": holding("text", text="x", cache_control={"type": "ephemeral", "ttl": "1h"})},
        {"messages": holding("text", text="x", cache_control={"type": "ephemeral"})},
        {"messages": holding("text", text="x", prompt_cache_breakpoint={"mode": "explicit"})},
        {"messages": holding("text", text="\u00e9")},
        {"model": "~openai/gpt-latest"},
        {"models": ["a", "~openai/gpt-latest"]},
    ],
    ids=str,
)
def test_a_cache_that_a_router_may_write_is_reckoned_at_twice_the_input(fields):
    """Its list has no price for an hour, nor for all models one for less."""
    assert (read("openrouter", **fields).input_readings, read("openrouter").input_readings) == (
        2,
        1,
    )


@pytest.mark.parametrize(
    "model", [f"google/gemini-{name}" for name in ("2.5-flash-lite", "2.5-pro", "3.1-flash-lite")]
)
def test_a_gemini_cache_costs_the_input_and_what_the_list_has_for_its_storage(model):
    mark = {"messages": holding("text", text="x" * 9000, cache_control={"type": "ephemeral"})}
    facts = read("openrouter", model=model, max_tokens=1, **mark)
    priced = PriceBook([]).find("openrouter", "openrouter", model)
    assert priced is not None
    price = vars(priced.info.get_prices(datetime.fromtimestamp(LATER / 1000, UTC), {}))
    rates = [getattr(price[key], "base", price[key]) for key in ("input_mtok", "cache_write_mtok")]
    assert rates[1] < rates[0], "no list has what is written at less than what is read"
    assert facts.input_tokens_max is not None
    cost = facts.input_tokens_max * sum(rates) * 1000
    assert priced.estimate(facts, LATER, None).nanousd >= cost


def test_tools_that_are_nested_deeply_are_reckoned_with_their_indents():
    value: object = [1] * 100
    for _ in range(40):
        value = {"a": value}
    function: dict[str, Any] = {"name": "f", "parameters": {}}
    flat = read("groq", tools=[{"type": "function", "function": function}])
    deep = read("groq", tools=[{"type": "function", "function": {**function, "parameters": value}}])
    assert deep.input_tokens_max is not None
    assert flat.input_tokens_max is not None
    assert deep.input_tokens_max - flat.input_tokens_max >= 100 * (1 + 2 + 40 * 4 // 64)


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
        ({"cost_in_usd_ticks": 37_756_000}, Decimal("0.0037756")),
        ({"cost_in_usd_ticks": 1.5}, None),
        ({"cost_in_usd_ticks": -1}, None),
        ({"cost_in_usd_ticks": 10**17}, None),
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


def test_what_xai_says_that_it_charges_is_charged_where_it_is_more():
    priced = PriceBook([OwnPrice("p", "m", Decimal(1), Decimal(1))]).find("p", "x-ai", "m")
    assert priced is not None
    assert priced.cost(report("xai", {**USAGE, "cost_in_usd_ticks": 5_000_000}), NOW) == 500_000
    assert priced.cost(report("xai", {**USAGE, "cost_in_usd_ticks": 5}), NOW) == 120_000


@pytest.mark.parametrize("api", COMPATIBLE)
def test_a_refusal_is_no_proof_where_what_violates_the_guidelines_is_billed(api):
    assert (403 in ADAPTERS[api].unbilled_status) is (api != "xai")
    assert {400, 401, 404, 422, 429, 500} <= ADAPTERS[api].unbilled_status


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


@pytest.mark.parametrize(
    ("api", "status"),
    [("groq", 498), ("deepseek", 402), ("openrouter", 402), ("cohere", 402)],
)
def test_a_status_by_which_a_server_says_that_it_did_nothing_costs_nothing(api, status):
    assert status in ADAPTERS[api].unbilled_status
    assert ADAPTERS[api].unbilled_status - {status} == ADAPTERS["openai"].unbilled_status
    assert status not in ADAPTERS["openai"].unbilled_status
