"""A call that has to be answered within a region never costs less than there."""

import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import data_snapshot, types

from extauthz.pricing import OwnPrice, PriceBook, PricedModel
from extauthz.providers import ADAPTERS
from extauthz.providers.base import REGIONAL, RequestFacts
from extauthz.usage import Exactness, UsageReport

NOW = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) * 1000
USAGE = {"input_tokens": 300_000, "cache_read_tokens": 1_000, "output_tokens": 1_000}
BOOK = PriceBook([])


def find(provider: str, model: str, book: PriceBook = BOOK) -> PricedModel:
    priced = book.find(provider, provider, model)
    assert priced is not None
    return priced


def cost(priced: PricedModel, **context: str) -> int:
    return priced.cost(UsageReport(Exactness.EXACT, USAGE, price_context=context), NOW)


@pytest.mark.parametrize(
    ("provider", "model", "tenths"),
    [
        ("google", "claude-3-5-sonnet-v2@20241022", 10),
        ("google", "claude-sonnet-4@20250514", 10),
        ("google", "claude-opus-4-1@20250805", 10),
        ("google", "claude-sonnet-4-5@20250929", 11),  # with a price of its own for long contexts
        ("google", "claude-haiku-4-5@20251001", 11),
        ("google", "claude-opus-4-6", 11),
        ("google", "claude-opus-5-5", 11),
        ("google", "gemini-2.0-flash", 10),
        ("google", "gemini-2.5-pro", 10),
        ("google", "gemini-3-pro-preview", 11),
        ("google", "gemini-3.1-flash-lite", 11),
        ("anthropic", "claude-opus-4-6", 11),
        ("openai", "gpt-4o-mini", 10),
        ("openai", "gpt-5", 10),
        ("openai", "gpt-5.1", 10),
        ("openai", "o3", 10),
        ("openai", "gpt-5.4", 11),
        ("openai", "gpt-6.1-sol", 11),
    ],
)
def test_newer_models_cost_a_tenth_more(provider: str, model: str, tenths: int) -> None:
    priced = find(provider, model)
    anywhere = cost(priced)
    assert cost(priced, **REGIONAL) == -(-anywhere * tenths // 10)

    facts = RequestFacts(model, False, 300_000, 1_000, price_contexts=(REGIONAL,))
    assert priced.estimate(facts, NOW, None).nanousd >= cost(priced, **REGIONAL)


def test_a_region_adds_to_a_faster_tier() -> None:
    priced = find("openai", "gpt-5.4")
    fast = cost(priced, service_tier="priority")
    assert fast > cost(priced)
    assert cost(priced, service_tier="priority", **REGIONAL) == -(-fast * 11 // 10)


def test_a_price_of_the_config_is_meant_as_it_is() -> None:
    book = PriceBook([OwnPrice("google", "claude-*", Decimal(3), Decimal(15))])
    priced = find("google", "claude-opus-5-5", book)
    assert cost(priced, **REGIONAL) == cost(priced)


@pytest.mark.parametrize("host", ["us", "eu", "in"])
def test_a_regional_host_of_openais_is_known_by_its_name(host: str) -> None:
    regional = ADAPTERS["openai"].regional_upstream
    assert regional.match(f"https://{host}.api.openai.com")
    assert not regional.match("https://api.openai.com")
    assert not regional.match(f"https://{host}.api.openai.com.example.org")


def test_bedrocks_list_has_no_region_at_the_price_of_anywhere() -> None:
    """Its prices by region are its own; a prefix without one is refused."""
    listed = data_snapshot.get_snapshot().find_provider(None, "aws", None).models
    names = [info.id for info in listed if info.id.startswith("global.anthropic.")]
    assert len(names) >= 10
    compared = 0
    for name in names:
        anywhere = _input_rate(find("aws", name))
        if re.search(r"claude-(3|sonnet-4-2025)", name):
            continue  # older: one price for all
        for prefix in ("", "us.", "eu.", "apac.", "jp.", "au.", "in.", "ca.", "sa.", "us-gov."):
            regional = BOOK.find("aws", "aws", name.replace("global.", prefix))
            if regional is not None:
                compared += 1
                assert _input_rate(regional) == anywhere * Decimal("1.1"), (prefix, name)
    assert compared >= 40


def _input_rate(priced: PricedModel) -> Decimal:
    rate = priced.info.get_prices(datetime.fromtimestamp(NOW / 1000, UTC)).input_mtok
    return rate.base if isinstance(rate, types.TieredPrices) else rate


@pytest.mark.parametrize(
    ("provider", "model", "way"),
    [
        ("azure", "o3-2025-04-16", {"service_tier": "priority"}),
        ("openai", "gpt-5-nano", {"service_tier": "priority"}),
        ("anthropic", "claude-opus-4-6", {"speed": "fast"}),
    ],
)
def test_a_faster_way_that_was_served_without_a_price_is_not_billed_as_the_standard_one(
    provider: str, model: str, way: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="no price for"):
        cost(find(provider, model), **way)


def test_azures_tiers_are_those_of_the_list_that_has_its_model() -> None:
    """Flex costs half, says Microsoft too; priority its own price.

    https://learn.microsoft.com/azure/foundry/openai/how-to/flex-processing
    """
    azure, openai = find("azure", "gpt-5"), find("openai", "gpt-5")
    assert azure.info is openai.info
    standard = cost(azure)
    assert cost(azure, service_tier="flex") * 2 == standard
    assert cost(azure, service_tier="priority") == standard * 2
    facts = RequestFacts(
        "gpt-5", False, 300_000, 1_000, price_contexts=({}, {"service_tier": "priority"})
    )
    assert azure.estimate(facts, NOW, None).nanousd >= cost(azure, service_tier="priority")
