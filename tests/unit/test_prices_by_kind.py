"""Each kind of price, worked out by hand: caches, reasoning, tiers, long context, dates, aliases.

Prices as published, in USD per million tokens:
https://openai.com/api/pricing and https://docs.claude.com/en/docs/about-claude/pricing.
"""

from datetime import UTC, datetime
from importlib.metadata import version

import pytest

from extauthz.pricing import PriceBook
from extauthz.usage import Exactness, UsageReport

BOOK = PriceBook([])


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


NOW = ms("2026-11-23")


def cost(model: str, at_ms: int = NOW, context: dict[str, str] | None = None, **amounts: int):
    provider = "anthropic" if model.startswith("claude") else "openai"
    priced = BOOK.find(provider, provider, model)
    assert priced is not None
    return priced.cost(UsageReport(Exactness.EXACT, amounts, model, context or {}), at_ms)


@pytest.mark.parametrize(
    ("model", "amounts", "nanousd"),
    [
        # 600 x 1.25 + 400 x 0.125 + 100 x 10: cached tokens are part of the input
        ("gpt-5", {"input_tokens": 1000, "cache_read_tokens": 400, "output_tokens": 100},
         1_800_000),
        # reasoning is part of the output, at its price
        ("gpt-5", {"input_tokens": 0, "output_tokens": 100, "output_reasoning_tokens": 90},
         1_000_000),
        # 100 x 1 + 200 x 0.10 + 300 x 1.25 + 400 x 2 + 10 x 5
        ("claude-haiku-4-5",
         {"input_tokens": 1000, "cache_read_tokens": 200, "cache_write_tokens": 700,
          "cache_write_5m_tokens": 300, "cache_write_1h_tokens": 400, "output_tokens": 10},
         1_345_000),
        # 1000 x 4 + 1000 x 32: text, and 1000 x 16 + 1000 x 64: sound
        ("gpt-realtime",
         {"input_tokens": 1000, "input_audio_tokens": 1000, "output_tokens": 1000,
          "output_audio_tokens": 1000}, 96_000_000),
        # 2 x 0.01 USD for searches beside the tokens
        ("gpt-4o", {"input_tokens": 1000, "output_tokens": 0, "web_searches": 2}, 22_500_000),
        ("text-embedding-3-small", {"input_tokens": 1000}, 20_000),
        # 12 x 5 + 4160 x 40
        ("gpt-image-1",
         {"input_tokens": 12, "input_text_tokens": 12, "input_image_tokens": 0,
          "output_tokens": 4160}, 166_460_000),
    ],
)  # fmt: skip
def test_each_kind_of_usage_has_its_own_rate(model, amounts, nanousd):
    assert cost(model, **amounts) == nanousd


@pytest.mark.parametrize(
    ("tier", "nanousd"),
    [(None, 1_250_000), ("default", 1_250_000), ("flex", 625_000), ("priority", 2_500_000)],
)
def test_the_tier_that_was_served_decides(tier, nanousd):
    context = {"service_tier": tier} if tier else {}
    assert cost("gpt-5", context=context, input_tokens=1000, output_tokens=0) == nanousd


@pytest.mark.parametrize(("tokens", "nanousd"), [(200_000, 600_000_000), (200_001, 1_200_006_000)])
def test_a_long_context_is_dearer_from_its_first_token(tokens, nanousd):
    assert cost("claude-sonnet-4-5", input_tokens=tokens, output_tokens=0) == nanousd


@pytest.mark.parametrize(
    ("date", "nanousd"), [("2025-06-09T23:59:59", 10_000_000), ("2025-06-10", 2_000_000)]
)
def test_a_price_that_changed_counts_from_its_day(date, nanousd):
    assert cost("o3", ms(date), input_tokens=1000, output_tokens=0) == nanousd


@pytest.mark.parametrize(
    ("alias", "snapshot"),
    [
        ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
        ("gpt-5", "gpt-5-2025-08-07"),
        ("o3", "o3-2025-04-16"),
        ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001"),
    ],
)
def test_an_alias_and_its_dated_snapshot_have_one_price(alias, snapshot):
    usage = {"input_tokens": 1234, "output_tokens": 567}
    assert cost(alias, **usage) == cost(snapshot, **usage)


def test_a_price_says_which_list_it_is_from():
    priced = BOOK.find("openai", "openai", "gpt-4o")
    assert priced is not None
    assert priced.price_version == f"genai-prices/{version('genai_prices')}"
