"""Our price of a call is genai-prices' own, rounded up once: every model, kind, tier and date.

The expected side is the list's public `calc_price`, by its own look-up of the model; and the totals
that the project publishes in its README and its tests, as figures.
"""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from genai_prices import Usage, calc_price, data_snapshot, types

from extauthz.pricing import PriceBook, total_nanousd
from extauthz.providers import ADAPTERS
from extauthz.usage import Exactness, UsageReport

BOOK = PriceBook([])
SNAPSHOT = data_snapshot.get_snapshot()
PROVIDERS = sorted({adapter.price_provider for adapter in ADAPTERS.values()})
DATES = tuple(
    datetime.fromisoformat(f"{day}T12:00:00+00:00")
    for day in ("2025-03-01", "2026-02-01", "2026-07-29", "2026-10-14", "2026-11-23")
)
CONTEXTS: tuple[dict[str, str], ...] = (
    {}, {"service_tier": "default"}, {"service_tier": "flex"}, {"service_tier": "priority"},
    {"speed": "fast"}, {"service_tier": "unheard-of"},
)  # fmt: skip
USAGES: tuple[dict[str, int], ...] = (
    {"input_tokens": 1, "output_tokens": 1},
    {"input_tokens": 12_345, "output_tokens": 678, "output_reasoning_tokens": 600},
    {"input_tokens": 12_345, "cache_read_tokens": 7_777, "output_tokens": 1},
    {"input_tokens": 272_001, "cache_read_tokens": 3, "output_tokens": 99_999},
    {
        "input_tokens": 300_000, "cache_read_tokens": 50_000, "cache_write_tokens": 100_000,
        "cache_write_5m_tokens": 90_000, "cache_write_1h_tokens": 10_000, "output_tokens": 10_000,
    },
    {"input_tokens": 600, "output_tokens": 40, "web_searches": 3},
)  # fmt: skip
ALWAYS = ("anthropic", "deepseek", "google", "groq")
"""with caches, tiers, dates and parts of a nano-USD; the others take a minute"""


def names_of(info: types.ModelInfo) -> Iterator[str]:
    """Names that the list may find this model by."""
    for clause in (info.match, *getattr(info.match, "or_", ())):
        for how in ("equals", "starts_with"):
            yield from filter(None, [getattr(clause, how, None)])
    yield info.id


MODELS = sorted(
    {
        (provider, next(names_of(info)))
        for provider in PROVIDERS
        for info in SNAPSHOT.find_provider(None, provider, None).models
    }
)


def ms(at: datetime) -> int:
    return int(at.timestamp()) * 1000


def contexts_of(info: types.ModelInfo) -> tuple[dict[str, str], ...]:
    """Only a model with variants of its price can have another one in another context."""
    return CONTEXTS if info.price_variants else CONTEXTS[:1]


def ceil_nano(usd: Decimal) -> int:
    return ceil(Fraction(usd) * 1_000_000_000)


@pytest.mark.parametrize(
    "provider",
    [
        provider if provider in ALWAYS else pytest.param(provider, marks=pytest.mark.full)
        for provider in PROVIDERS
    ],
)
def test_every_priced_model_costs_what_the_list_says_rounded_up(provider: str) -> None:
    compared = 0
    for _, model in [each for each in MODELS if each[0] == provider]:
        priced = BOOK.find(provider, provider, model)
        if priced is None:
            continue
        # By the public way in, once for each model, as it looks through the whole list.
        listed = calc_price(Usage(input_tokens=0), model_ref=model, provider_id=provider).model
        for usage, at, context in itertools.product(USAGES, DATES, contexts_of(listed)):
            report = UsageReport(Exactness.EXACT, usage, model, context)
            try:
                ours = priced.cost(report, ms(at))
            except ValueError:
                assert _has_no_price(listed, usage, at, context), (model, usage, at, context)
                continue
            if hour_writes_are_unlisted(listed, at) and "cache_write_1h_tokens" in usage:
                continue  # the list reckons five minutes: tests/unit/test_pricing.py
            theirs = listed.calc_price(
                Usage(**usage),
                priced.source,
                genai_request_timestamp=at,
                price_context=context,
            ).total_price
            assert ours == ceil_nano(theirs), (model, usage, at, context)
            assert total_nanousd(priced.bill(report, ms(at))) == ours
            compared += 1
    assert compared >= 30


def hour_writes_are_unlisted(info: types.ModelInfo, at: datetime) -> bool:
    prices = vars(info.get_prices(at, {}))
    return prices.get("cache_write_mtok") is not None and "cache_write_1h_mtok" not in prices


def _has_no_price(
    info: types.ModelInfo, usage: dict[str, int], at: datetime, context: dict[str, str]
) -> bool:
    """Whether the list has nothing for a kind that was used, or for a dearer way to be served: it
    counts the one as costing nothing, the other as the standard way."""
    if {"priority", "fast"}.intersection(context.values()) and not any(
        variant.when.items() <= context.items()
        and (variant.constraint is None or variant.constraint.active(at))
        for variant in info.price_variants or ()
    ):
        return True
    prices = vars(info.get_prices(at, context))
    need = {"input_tokens": "input_mtok", "output_tokens": "output_mtok"}
    need["web_searches"] = "web_searches_kcount"
    return any(prices.get(key) is None for kind, key in need.items() if usage.get(kind))


PUBLISHED: tuple[tuple[str, str, str, dict[str, str], dict[str, int], str], ...] = (
    # From the package's README.
    ("openai", "o3", "2026-10-12", {"service_tier": "flex"},
     {"input_tokens": 1_000_000, "output_tokens": 1_000_000}, "5"),
    ("anthropic", "claude-fable-5-2", "2026-11-10", {"speed": "fast"},
     {"input_tokens": 1_000_000, "output_tokens": 1_000_000}, "96"),
    # From its tests, test_price_calc.py: the last three by the rates they state.
    ("openai", "gpt-4o", "2026-11-23", {}, {"input_tokens": 1000, "output_tokens": 100}, "0.0035"),
    ("openai", "gpt-5.6-luna", "2026-07-29", {}, {"input_tokens": 1000, "output_tokens": 100},
     "0.0016"),
    ("openai", "gpt-5.6-luna", "2026-07-30", {}, {"input_tokens": 1000, "output_tokens": 100},
     "0.00032"),
    ("openai", "gpt-5.6-luna", "2026-07-29", {},
     {"input_tokens": 272_001, "cache_write_tokens": 272_001}, "0.6800025"),
)  # fmt: skip


@pytest.mark.parametrize(("provider", "model", "date", "context", "usage", "usd"), PUBLISHED)
def test_the_totals_that_the_list_publishes_are_ours(
    provider: str, model: str, date: str, context: dict[str, str], usage: dict[str, Any], usd: str
) -> None:
    priced = BOOK.find(provider, provider, model)
    assert priced is not None
    at = datetime.fromisoformat(date).replace(tzinfo=UTC)
    cost = priced.cost(UsageReport(Exactness.EXACT, usage, model, context), ms(at))
    assert cost == ceil_nano(Decimal(usd))


def test_the_models_that_were_compared_are_the_whole_list() -> None:
    assert len(MODELS) >= 600
    assert all(any(provider == each for each, _ in MODELS) for provider in PROVIDERS)
