"""No call can cost more than its estimate, whatever it used within its bounds."""

import itertools
import json
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from genai_prices import data_snapshot, types
from hypothesis import given, settings
from hypothesis import strategies as st

from extauthz.money import AMOUNT_MAX
from extauthz.pricing import BillLine, OwnPrice, PriceBook, PricedModel, total_nanousd
from extauthz.pricing.limits import TOKENS_MAX_UNKNOWN, context_window_max, output_tokens_max
from extauthz.providers.base import RequestFacts
from extauthz.usage import Exactness, UsageReport


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


NOW = ms("2026-11-23T12:00")
DATES = (ms("2025-03-01"), ms("2026-02-01"), ms("2026-10-12T23:59:59"), ms("2026-10-14"), NOW)
BOOK = PriceBook([])


def find(model: str, provider: str = "openai", book: PriceBook = BOOK) -> PricedModel:
    priced = book.find(provider, provider, model)
    assert priced is not None
    return priced


def name_of(info: types.ModelInfo) -> str:
    """A name that the list finds this model by: its id is not always one."""
    clauses = getattr(info.match, "or_", [info.match])
    for clause in clauses:
        for how in ("equals", "starts_with"):
            name = getattr(clause, how, None)
            found = BOOK.find(provider_of(info), provider_of(info), name) if name else None
            if name and found and found.info is info:
                return name
    return info.id


def models_of(provider: str) -> list[types.ModelInfo]:
    return data_snapshot.get_snapshot().find_provider(None, provider, None).models


def provider_of(info: types.ModelInfo) -> str:
    return "anthropic" if any(info is model for model in models_of("anthropic")) else "openai"


MODELS = [
    (provider, name_of(info))
    for provider in ("openai", "anthropic")
    for info in models_of(provider)
]
PRICED = [
    (provider, name)
    for provider, name in MODELS
    if (priced := BOOK.find(provider, provider, name))
    and priced.covers(RequestFacts(name, False, 1, 1), NOW)
]

OPENAI_CONTEXTS: tuple[dict[str, str], ...] = (
    {}, {"service_tier": "default"}, {"service_tier": "priority"}, {"service_tier": "fast"},
)  # fmt: skip


@st.composite
def calls(draw) -> tuple[PricedModel, RequestFacts, UsageReport, int]:
    """A request, and any usage that its facts allow."""
    provider, name = draw(st.sampled_from(PRICED))
    priced = find(name, provider)
    media = draw(st.booleans())
    window = priced.context_window or TOKENS_MAX_UNKNOWN
    bound = draw(st.one_of(st.integers(1, 2_000), st.integers(1, window)))
    cap = draw(st.none() | st.integers(1, 200_000))
    answers = draw(st.integers(1, 4))
    fast = provider == "anthropic" and draw(st.booleans())
    contexts = ({}, {"speed": "fast"}) if fast else ({},)
    facts = RequestFacts(
        model=name,
        stream=False,
        input_tokens_max=None if media else bound,
        output_tokens_cap=cap,
        answers=answers,
        cache_writes=draw(st.booleans()) or provider == "openai",
        media=media,
        audio=media and draw(st.booleans()),
        price_contexts=OPENAI_CONTEXTS if provider == "openai" else contexts,
    )
    input_tokens = draw(st.integers(0, window if media else bound))
    most = (cap or priced.output_tokens_max) * answers
    amounts = {"input_tokens": input_tokens, "output_tokens": draw(st.integers(0, most))}
    read = draw(st.integers(0, input_tokens))
    written = draw(st.integers(0, input_tokens - read)) if facts.cache_writes else 0
    amounts["cache_read_tokens"] = read
    amounts["cache_write_tokens"] = written
    if provider == "anthropic":
        amounts["cache_write_1h_tokens"] = draw(st.integers(0, written))
    if facts.audio and priced.covers(facts, NOW):
        # genai-prices asks for the overlap of cached and heard tokens where it has a price for it.
        amounts |= {"cache_read_tokens": 0, "cache_write_tokens": 0}
        amounts["input_audio_tokens"] = draw(st.integers(0, input_tokens))
        amounts["output_audio_tokens"] = draw(st.integers(0, amounts["output_tokens"]))
    context = draw(st.sampled_from(facts.price_contexts))
    return priced, facts, UsageReport(Exactness.EXACT, amounts, name, context), most


def cost_of(priced: PricedModel, report: UsageReport, at_ms: int) -> int:
    """As a settlement reckons: what has been served faster without a price is not known, and then
    the reservation is charged."""
    dearer = {"priority", "fast"}.intersection(report.price_context.values())
    with suppress(ValueError) if dearer else nullcontext():
        return priced.cost(report, at_ms)
    return 0


def within(case, at_ms: int) -> None:
    priced, facts, report, _ = case
    estimate = priced.estimate(facts, at_ms, None)
    cost = cost_of(priced, report, at_ms)
    assert type(cost) is type(estimate.nanousd) is int
    assert 0 <= cost <= estimate.nanousd
    assert report.tokens <= estimate.tokens


@given(calls(), st.sampled_from(DATES))
@settings(max_examples=400)
def test_no_usage_within_its_bounds_costs_more_than_the_estimate(case, at_ms):
    within(case, at_ms)


@pytest.mark.full
@given(calls(), st.sampled_from(DATES))
@settings(max_examples=5_000)
def test_no_usage_within_its_bounds_costs_more_than_the_estimate_at_length(case, at_ms):
    within(case, at_ms)


@pytest.mark.parametrize(("provider", "name"), PRICED, ids=lambda value: value)
def test_of_every_model_the_dearest_use_is_within_the_estimate(provider, name):
    priced = find(name, provider)
    contexts = OPENAI_CONTEXTS if provider == "openai" else ({}, {"speed": "fast"})
    for at_ms, tokens in itertools.product(DATES, (1, 100_001, 200_001, 272_001, 1_000_000)):
        facts = RequestFacts(name, False, tokens, 1000, cache_writes=True, price_contexts=contexts)
        estimate = priced.estimate(facts, at_ms, None)
        for context in contexts:
            for kind in ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", ""):
                amounts = {"input_tokens": tokens, "output_tokens": 1000}
                amounts |= {kind: tokens} if kind else {}
                if kind == "cache_write_1h_tokens":
                    amounts["cache_write_tokens"] = tokens
                report = UsageReport(Exactness.EXACT, amounts, name, context)
                assert cost_of(priced, report, at_ms) <= estimate.nanousd
        assert estimate.nanousd > 0


def test_every_model_that_has_token_prices_is_found_by_name():
    assert len(PRICED) >= 110


@pytest.mark.parametrize(
    "model",
    ["whisper-1", "tts-1", "gpt-live-1", "gpt-transcribe", "text-moderation-latest",
     "text-embedding-3-small", "no-such-model", "", "gpt-4o ", " gpt-4o", "gpt-4o\n", "../gpt-4o",
     "ft:gpt-4.1:org"],
)  # fmt: skip
def test_what_has_no_price_for_tokens_in_both_directions_is_unpriced(model):
    priced = BOOK.find("openai", "openai", model)
    assert priced is None or not priced.covers(RequestFacts(model, False, 1, 1), NOW)


@pytest.mark.parametrize(
    ("model", "amounts"),
    [
        ("text-embedding-3-small", {"input_tokens": 5, "output_tokens": 1}),
        ("tts-1", {"input_tokens": 5}),
        ("gpt-4o", {"input_tokens": 5, "output_tokens": 1, "audio_seconds": 3}),
        ("claude-sonnet-4-5", {"input_tokens": 5, "social_searches": 1}),
    ],
)
def test_usage_without_a_price_for_it_is_never_reckoned_as_nothing(model, amounts):
    provider = "anthropic" if model.startswith("claude") else "openai"
    with pytest.raises(ValueError, match="no price"):
        find(model, provider).cost(usage(**amounts), NOW)


def test_what_has_only_input_needs_no_price_of_its_output():
    facts = RequestFacts("text-embedding-3-small", False, 1_000_000, 0, bills=("input_mtok",))
    priced = find("text-embedding-3-small")
    assert priced.covers(facts, NOW)
    assert priced.estimate(facts, NOW, None).nanousd == 20_000_000  # 0.02 USD per million
    assert priced.cost(usage(input_tokens=1_000_000), NOW) == 20_000_000


def test_what_the_request_tells_exactly_is_reckoned_by_its_unit():
    facts = RequestFacts(
        "tts-1", False, 0, 0, bills=("input_mchars",), counted={"input_characters": 2_000}
    )
    priced = find("tts-1")
    assert priced.covers(facts, NOW)
    assert priced.estimate(facts, NOW, None).nanousd == 30_000_000  # 15 USD per million


def test_a_fallback_price_counts_only_where_nothing_else_prices_the_model():
    book = PriceBook(
        [
            OwnPrice("openai", "*", Decimal(50), Decimal(100), fallback=True),
            OwnPrice("openai", "mine*", Decimal(1), Decimal(2)),
        ]
    )
    facts = RequestFacts("m", False, 1_000_000, 0)
    prices = {
        model: find(model, "openai", book).estimate(facts, NOW, None).nanousd
        for model in ("gpt-4o-mini", "mine-1", "nobody-knows-this", "moderation")
    }
    assert prices == {
        "gpt-4o-mini": find("gpt-4o-mini").estimate(facts, NOW, None).nanousd,
        "mine-1": 10**9,
        "nobody-knows-this": 50 * 10**9,
        "moderation": 50 * 10**9,
    }


def test_a_fallback_price_never_counts_for_a_name_that_was_only_served():
    book = PriceBook([OwnPrice("openai", "*", Decimal(50), Decimal(100), fallback=True)])
    settled = book.settled_at("openai", "openai", "gpt-4o", "nobody-knows-this-snapshot")
    assert settled is book.find("openai", "openai", "gpt-4o")
    both = book.settled_at("openai", "openai", "nobody-knows-this", "nor-that")
    assert both is not None
    assert both.own is not None


def test_a_cost_is_worked_out_by_hand():
    report = UsageReport(
        Exactness.EXACT,
        {
            "input_tokens": 10_000,
            "cache_read_tokens": 2_000,
            "cache_write_tokens": 3_000,
            "cache_write_1h_tokens": 1_000,
            "output_tokens": 500,
        },
    )
    # claude-haiku-4-5: 1 in, 0.10 read, 1.25 written for 5 minutes, 2 for an hour, 5 out
    expected = 5_000 * 1 + 2_000 * Fraction(1, 10) + 2_000 * Fraction(5, 4) + 1_000 * 2 + 500 * 5
    assert find("claude-haiku-4-5", "anthropic").cost(report, NOW) == expected * 1000


def usage(**amounts: int) -> UsageReport:
    return UsageReport(Exactness.EXACT, {"input_tokens": 0, "output_tokens": 0} | amounts)


def test_a_fraction_of_a_nano_is_rounded_up_once_for_the_call():
    book = PriceBook([OwnPrice("p", "m", Decimal("0.0001"), Decimal("0.0003"))])
    priced = find_at(book, "m")
    assert priced.cost(usage(input_tokens=1), NOW) == 1  # 0.1
    assert priced.cost(usage(input_tokens=1, output_tokens=1), NOW) == 1  # 0.1 + 0.3, not 1 + 1
    assert priced.cost(usage(input_tokens=11), NOW) == 2


def find_at(book: PriceBook, model: str) -> PricedModel:
    priced = book.find("p", "openai", model)
    assert priced is not None
    return priced


@given(
    st.decimals(0, 1000, places=8), st.decimals(0, 1000, places=8),
    st.integers(0, 10**9), st.integers(0, 10**9),
)  # fmt: skip
def test_own_prices_are_exact_decimals(into, out, input_tokens, output_tokens):
    priced = find_at(PriceBook([OwnPrice("p", "m", into, out)]), "m")
    cost = priced.cost(usage(input_tokens=input_tokens, output_tokens=output_tokens), NOW)
    exact = (Fraction(into) * input_tokens + Fraction(out) * output_tokens) * 1000
    assert 0 <= cost - exact < 1


def test_a_price_of_zero_is_a_price():
    priced = find_at(PriceBook([OwnPrice("p", "local", Decimal(0), Decimal(0))]), "LOCAL")
    assert priced.cost(usage(input_tokens=5, output_tokens=5), NOW) == 0
    assert priced.estimate(RequestFacts("local", False, 5, 5), NOW, None).nanousd == 0


def test_an_own_price_comes_before_the_public_one_for_its_provider_only():
    book = PriceBook([OwnPrice("mine", "gpt-4o*", Decimal(1), Decimal(2))])
    own, public = book.find("mine", "openai", "GPT-4o"), book.find("other", "openai", "gpt-4o")
    assert own is not None
    assert public is not None
    assert (own.price_version, public.own) == ("config", None)
    assert own.cost(usage(input_tokens=1_000_000), NOW) == 10**9


def test_the_first_own_price_that_matches_counts():
    book = PriceBook(
        [OwnPrice("p", "a-*", Decimal(1), Decimal(1)), OwnPrice("p", "a-b", Decimal(9), Decimal(9))]
    )
    assert find_at(book, "a-b").cost(usage(input_tokens=1000), NOW) == 10**6


def test_own_rates_that_are_left_out_fall_back_to_the_input_price():
    priced = find_at(PriceBook([OwnPrice("p", "m", Decimal(3), Decimal(5))]), "m")
    report = usage(input_tokens=30, cache_read_tokens=10, cache_write_tokens=10)
    assert priced.cost(report, NOW) == 90_000


def test_an_own_cache_rate_above_the_input_price_is_in_the_estimate():
    own = OwnPrice("p", "m", Decimal(1), Decimal(1), cache_read=Decimal(7), cache_write=Decimal(5))
    priced = find_at(PriceBook([own]), "m")
    estimate = priced.estimate(RequestFacts("m", False, 100, 1, cache_writes=False), NOW, None)
    assert estimate.nanousd >= priced.cost(usage(input_tokens=100, cache_read_tokens=100), NOW)


@pytest.mark.parametrize(
    ("requested", "served", "cost"),
    [
        ("gpt-4o", None, 1000),
        ("gpt-4o", "gpt-4o-2024-08-06", 1000),  # the config's price, for its snapshot too
        ("prod-chat", "gpt-4o-2024-08-06", 7000),  # ... and behind an alias
        ("gpt-4.1", "gpt-4.1-2025-04-14", 2000),
        ("gpt-4.1", "no-such-model", 2000),
        ("gpt-4.1", "gpt-4o", 1000),  # the config prices what was served
        ("gpt-4o-mini", "gpt-4.1", 2000),  # what was served is what is billed
    ],
)
def test_a_settlement_uses_the_price_of_what_was_served(requested, served, cost):
    book = PriceBook(
        [
            OwnPrice("p", "gpt-4o", Decimal(1), Decimal(1)),
            OwnPrice("p", "prod-chat", Decimal(7), Decimal(7)),
        ]
    )
    priced = book.settled_at("p", "openai", requested, served)
    assert priced is not None
    assert priced.cost(usage(input_tokens=1), NOW) == cost


def test_what_was_asked_for_and_served_without_any_price_has_none():
    assert BOOK.settled_at("openai", "openai", "x", "y") is None


def test_answers_and_rejected_predictions_are_in_the_estimate():
    priced = find("gpt-4o")
    one = priced.estimate(RequestFacts("gpt-4o", False, 100, 50), NOW, None)
    many = priced.estimate(
        RequestFacts("gpt-4o", False, 100, 50, answers=7, extra_output_tokens=30), NOW, None
    )
    assert (one.output_tokens, many.output_tokens) == (50, 380)
    assert many.nanousd - one.nanousd == 330 * 10_000


def test_a_tier_is_crossed_by_one_token_and_then_prices_all_of_them():
    priced = find("gpt-5.4")
    below, above = (
        priced.estimate(RequestFacts("gpt-5.4", False, tokens, 1), NOW, None).nanousd
        for tokens in (272_000, 272_001)
    )
    assert below == 272_000 * 2_500 + 15_000
    assert above == 272_001 * 5_000 + 22_500


def test_a_dearer_tier_of_service_that_may_be_served_is_in_the_estimate():
    facts = RequestFacts("gpt-4o", False, 1000, 1000, price_contexts=OPENAI_CONTEXTS)
    assert find("gpt-4o").estimate(facts, NOW, None).nanousd == 1000 * 4_250 + 1000 * 17_000


def test_a_default_cap_bounds_only_calls_without_one():
    priced = find("gpt-4o")
    assert priced.estimate(RequestFacts("m", False, 1, None), NOW, 77).output_tokens == 77
    assert priced.estimate(RequestFacts("m", False, 1, 99), NOW, 77).output_tokens == 99
    assert priced.estimate(RequestFacts("m", False, 1, None), NOW, None).output_tokens == 16_384


@pytest.mark.parametrize("model", ["gpt-4o-audio-preview", "gpt-4o-mini-audio-preview", "gpt-4.1"])
def test_sound_without_a_price_for_sound_is_not_covered_nor_billed_as_text(model):
    priced = find(model)
    assert not priced.covers(RequestFacts(model, False, None, 1, media=True, audio=True), NOW)
    assert priced.covers(RequestFacts(model, False, None, 1, media=True), NOW)
    with pytest.raises(ValueError, match="audio"):
        priced.cost(usage(input_tokens=10, input_audio_tokens=5), NOW)


def test_sound_with_its_price_is_reckoned_at_the_dearest():
    priced = find("gpt-realtime")
    facts = RequestFacts("gpt-realtime", False, None, 100, media=True, audio=True)
    assert priced.covers(facts, NOW)
    heard = usage(input_tokens=30_000, input_audio_tokens=30_000, output_tokens=100)
    assert priced.estimate(facts, NOW, None).nanousd >= priced.cost(heard, NOW)


@pytest.mark.parametrize(
    ("provider", "model", "premium", "covered"),
    [
        ("openai", "gpt-4o", {"service_tier": "priority"}, True),
        ("openai", "gpt-4o", {"service_tier": "fast"}, True),
        ("openai", "o1", {"service_tier": "priority"}, False),
        ("openai", "gpt-5-pro", {"service_tier": "fast"}, False),
        ("anthropic", "claude-opus-5", {"speed": "fast"}, True),
        ("anthropic", "claude-opus-4-6", {"speed": "fast"}, False),  # 30/150, not in the list
        ("anthropic", "claude-opus-5", {"speed": "warp"}, False),
    ],
)
def test_being_served_faster_needs_a_price_of_its_own(provider, model, premium, covered):
    facts = RequestFacts(model, False, 1, 1, premium=premium)
    assert find(model, provider).covers(facts, NOW) is covered


def test_an_own_price_covers_sound_but_not_being_served_faster():
    priced = find_at(PriceBook([OwnPrice("p", "gpt-4o", Decimal(1), Decimal(1))]), "gpt-4o")
    assert priced.covers(RequestFacts("m", False, 1, 1, audio=True), NOW)
    assert not priced.covers(
        RequestFacts("m", False, 1, 1, premium={"service_tier": "priority"}), NOW
    )


@pytest.mark.parametrize(
    "amounts",
    [
        {"input_tokens": 10, "cache_read_tokens": 11},
        {"input_tokens": 10, "cache_read_tokens": 6, "cache_write_tokens": 6},
        {"input_tokens": 10, "cache_write_tokens": 3, "cache_write_1h_tokens": 4},
    ],
)
def test_usage_that_contradicts_itself_has_no_cost(amounts):
    with pytest.raises(ValueError, match="nvalid usage"):
        find("claude-haiku-4-5", "anthropic").cost(usage(**amounts), NOW)


@pytest.mark.parametrize(
    ("model", "window", "most"),
    [
        ("gpt-4o", 134_400, 16_384),
        ("GPT-4o-mini-2024-07-18", 134_400, 16_384),
        ("gpt-4o-2024-05-13", 134_400, 4_096),
        ("gpt-4o:extended", 100, 100),
        ("gpt-5-pro", 420_000, 420_000),
        ("gpt-5", 420_000, 128_000),
        ("gpt-3.5-turbo-16k", 17_000, 17_000),
        ("gpt-3.5-turbo", 17_000, 4_096),
        ("gpt-9", 400_000, 400_000),
        ("gpt-9", None, TOKENS_MAX_UNKNOWN),
        ("claude-opus-9", 1_000_000, 1_000_000),
    ],
)
def test_a_figure_that_is_in_doubt_is_larger_never_smaller(model, window, most):
    assert output_tokens_max(model, window) == most


# What litellm's list of 2026-07 says of the windows that genai-prices rounds.
@pytest.mark.parametrize(
    ("model", "truth"), [("gpt-4.1", 1_047_576), ("gpt-5.5", 1_050_000), ("gpt-4-32k", 32_768)]
)
def test_a_context_window_that_the_list_rounds_down_is_still_an_upper_bound(model, truth):
    window = find(model).context_window
    assert window is not None
    assert window >= truth


def test_a_window_that_the_list_itself_has_prices_beyond_is_no_bound():
    assert find("claude-sonnet-4-5", "anthropic").context_window is None
    info = types.ModelInfo(id="m", match=types.ClauseEquals("m"), context_window=None)
    assert context_window_max(info) is context_window_max(None) is None


def test_names_that_clients_make_up_are_not_kept_without_bound():
    book = PriceBook([])
    for number in range(5_000):
        book.find("openai", "openai", f"made-up-{number}")
    assert book._found.cache_info().currsize <= 4096


def test_what_was_sorted_out_for_another_second_is_not_kept():
    priced = PriceBook([]).find("openai", "openai", "gpt-4o")
    facts = RequestFacts("gpt-4o", stream=False, input_tokens_max=1, output_tokens_cap=1)
    for second in range(10):
        for writes in (False, True):
            priced.bound(replace(facts, cache_writes=writes), NOW + second * 1000, None)
    assert len(priced._rates) == 2


@pytest.mark.parametrize(
    "name", ["gpt-4o-mini " + "and a prompt", "gpt-4o-" + "x" * 250, "gpt-4o\n", ""]
)
def test_what_cannot_be_a_models_name_has_no_price_and_is_not_remembered(name):
    book = PriceBook([OwnPrice("openai", "*", Decimal(1), Decimal(1))])

    assert book.find("openai", "openai", name) is None
    assert book._found.cache_info().currsize == 0
    assert book.find("openai", "openai", "accounts/me/models/x#y@1:z") is not None


def test_the_most_that_any_call_can_cost_is_within_what_the_ledger_counts():
    facts = RequestFacts(
        "o1-pro", False, None, 10_000_000, answers=128, media=True, price_contexts=OPENAI_CONTEXTS
    )
    estimate = find("o1-pro").estimate(facts, NOW, None)
    assert type(estimate.nanousd) is int
    assert estimate.nanousd < AMOUNT_MAX


@given(calls(), st.sampled_from(DATES))
def test_a_bill_adds_up_to_the_cost_and_survives_being_written_down(case, at_ms):
    priced, _, report, _ = case
    bill = priced.bill(report, at_ms)
    written = json.loads(json.dumps([line.to_json() for line in bill]))
    assert tuple(map(BillLine.from_json, written)) == bill
    assert cost_of(priced, report, at_ms) in (total_nanousd(bill), 0)
    assert all(line.count > 0 for line in bill)


@pytest.mark.parametrize(
    "data", [None, [], ["a", 1], ["a", 1, "x"], ["a", 1, "NaN"], ["a", 1, "1", 0], ["a", "b", "1"]]
)
def test_what_is_no_line_of_a_bill_is_not_read_as_one(data):
    with pytest.raises(ValueError, match="is no line of a bill"):
        BillLine.from_json(data)


@pytest.mark.parametrize(("tokens", "rate"), [(272_000, "2.5"), (272_001, "5")])
def test_a_bill_says_the_rate_of_the_tier_that_applied(tokens, rate):
    report = usage(input_tokens=tokens, output_tokens=1)
    bill = find("gpt-5.4").bill(report, NOW)
    assert bill[0].to_json() == ["input_tokens", tokens, rate]
    assert total_nanousd(bill) == find("gpt-5.4").cost(report, NOW)


def test_an_hour_in_claudes_cache_is_twice_the_input_where_a_list_does_not_say_so():
    """https://docs.claude.com/en/docs/build-with-claude/prompt-caching#pricing"""
    usage = {"input_tokens": 190_000, "cache_write_tokens": 190_000, "output_tokens": 0}
    models = (("google", "claude-sonnet-4@20250514"), ("anthropic", "claude-sonnet-4-0"))
    for provider, model in models:
        priced = find(model, provider)
        for kind, rate in (("cache_write_1h_tokens", 6_000), ("cache_write_5m_tokens", 3_750)):
            told = UsageReport(Exactness.EXACT, usage | {kind: 190_000}, model)
            assert priced.cost(told, NOW) == 190_000 * rate


@pytest.mark.parametrize("at", ["2026-11-23T00:59:59", "2026-11-23T05:30", "2026-11-23T03:59:59"])
def test_a_call_whose_price_doubles_while_it_lasts_is_estimated_at_the_dearer(at):
    priced = find("deepseek-v4-pro", "deepseek")
    facts = RequestFacts(
        model="deepseek-v4-pro", stream=False, input_tokens_max=1000, output_tokens_cap=1000
    )
    usage = UsageReport(Exactness.EXACT, {"input_tokens": 1000, "output_tokens": 1000}, "")
    most = max(priced.cost(usage, ms(at) + minutes * 60_000) for minutes in range(61))
    assert priced.cost(usage, ms("2026-11-23T12:00:00")) < most
    assert priced.estimate(facts, ms(at), None).nanousd >= most


@pytest.mark.parametrize(("hours", "starts"), [(2, (4, 5)), (6, (0, 4, 10, 19, 20)), (48, (12,))])
def test_a_call_that_may_last_long_is_estimated_at_the_dearest_hour_that_it_may_end_in(
    hours: int, starts: tuple[int, ...]
) -> None:
    """DeepSeek's dear hours begin at 1 and at 6, and end at 4 and at 10."""
    book = PriceBook([], call_ms_max=hours * 3_600_000)
    priced = book.find("deepseek", "deepseek", "deepseek-v4-pro")
    assert priced is not None
    facts = RequestFacts("deepseek-v4-pro", False, 1000, 1000)
    used = UsageReport(Exactness.EXACT, {"input_tokens": 1000, "output_tokens": 1000})
    for hour in starts:
        start_ms = int(datetime(2026, 11, 23, hour, 30, tzinfo=UTC).timestamp()) * 1000
        estimate = priced.estimate(facts, start_ms, None).nanousd
        for minute in range(0, hours * 60 + 1, 15):
            cost, _ = priced.dearest_cost(used, start_ms, start_ms + minute * 60_000)
            assert cost <= estimate, (hour, minute)
