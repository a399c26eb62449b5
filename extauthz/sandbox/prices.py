"""What a model costs: the sandbox's own table and its own exact arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

_NANOUSD_PER_TOKEN = 1000  # 1 USD per million tokens = 10**9 / 10**6 nano-USD per token

NANOUSD_PER_SEARCH = 10_000_000
"""10 USD a thousand web searches, by Anthropic's price page. What is fetched costs its tokens."""

LONG_CONTEXT_TOKENS = 200_000
"""Above so many input tokens (cached ones count) a model's long-context rates hold."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. The kinds are disjoint, except that `reasoning` is part of `output`."""

    input: int
    output: int
    cached: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    reasoning: int = 0
    media: int = 0  # of sound and pictures that go in, beside `input`
    searches: int = 0
    fetches: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Nano-USD per token, exact."""

    input: Fraction
    output: Fraction
    cached: Fraction
    cache_write_5m: Fraction
    cache_write_1h: Fraction
    media: Fraction

    @classmethod
    def per_million(
        cls,
        *,
        input: str,  # noqa: A002 - the word of every price list
        output: str,
        cached: str | None = None,
        cache_write_5m: str | None = None,
        cache_write_1h: str | None = None,
        media: str | None = None,
    ) -> Self:
        """Rates from decimals in USD per million tokens; one that is left out is the input's."""

        def rate(usd: str | None) -> Fraction:
            amount = Fraction(input if usd is None else usd)
            if amount < 0:
                raise ValueError(f"{usd}: a rate is zero or more")
            return amount * _NANOUSD_PER_TOKEN

        return cls(
            rate(input),
            rate(output),
            rate(cached),
            rate(cache_write_5m),
            rate(cache_write_1h),
            rate(media),
        )


@dataclass(frozen=True, slots=True)
class Model:
    """A model on offer: `name` is what clients ask for, `snapshot` what the provider serves."""

    provider: str
    name: str
    snapshot: str
    rates: Rates
    max_output_tokens: int | None = None
    long_context: Rates | None = None
    reasoning: bool = False  # OpenAI's reasoning models refuse the older `max_tokens`

    def cost(self, usage: Usage) -> int:
        """Nano-USD of one call: the exact sum of its parts, rounded up once."""
        prompt = usage.input + usage.cached + usage.cache_write_5m + usage.cache_write_1h
        rates = self.rates
        if self.long_context is not None and prompt > LONG_CONTEXT_TOKENS:
            rates = self.long_context
        exact = (
            usage.input * rates.input
            + usage.output * rates.output
            + usage.cached * rates.cached
            + usage.cache_write_5m * rates.cache_write_5m
            + usage.cache_write_1h * rates.cache_write_1h
            + usage.media * rates.media
            + usage.searches * NANOUSD_PER_SEARCH
        )
        return -(-exact.numerator // exact.denominator)


class PriceTable:
    """Every model the sandbox serves, found by its alias or by its snapshot."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], Model] = {}
        for model in _published():
            self.add(model)

    def add(self, model: Model) -> None:
        """Offer a model, or offer it at another price from now on."""
        self._models[model.provider, model.name] = model
        self._models[model.provider, model.snapshot] = model

    def find(self, provider: str, name: str) -> Model | None:
        """The model that a request by this name is served by."""
        return self._models.get((provider, name))

    def ids(self, provider: str) -> list[str]:
        """Every name that the provider answers to."""
        return [name for owner, name in self._models if owner == provider]


def _published() -> Iterator[Model]:
    """The prices as the two providers publish them, written down here by hand."""
    per_million = Rates.per_million
    for name, date, most, rates in (
        ("gpt-4o-mini", "2024-07-18", 16_384, ("0.15", "0.075", "0.60")),
        ("gpt-4o", "2024-08-06", 16_384, ("2.50", "1.25", "10.00")),
        ("gpt-4.1", "2025-04-14", 32_768, ("2.00", "0.50", "8.00")),
        ("gpt-5", "2025-08-07", 128_000, ("1.25", "0.125", "10.00")),
    ):
        price = per_million(input=rates[0], cached=rates[1], output=rates[2])
        yield Model("openai", name, f"{name}-{date}", price, most, reasoning=name == "gpt-5")
    # (speech is sold by the million characters)
    for name, given, made in (
        ("gpt-3.5-turbo-instruct", "1.50", "2.00"),
        ("text-embedding-3-small", "0.02", "0"),
        ("tts-1", "15.00", "0"),
        ("whisper-1", "100", "0"),  # by the second, $0.006 a minute
        ("gpt-transcribe", "75", "0"),
    ):
        yield Model("openai", name, name, per_million(input=given, output=made))
    for name, given, media, made in (
        ("gpt-image-1", "5.00", "10.00", "40.00"),
        ("gpt-image-1-mini", "2.00", "2.50", "8.00"),
        ("gpt-4o-transcribe", "2.50", "6.00", "10.00"),
        ("gpt-4o-mini-transcribe", "1.25", "3.00", "5.00"),
    ):
        price = per_million(input=given, media=media, output=made)
        yield Model("openai", name, name, price)

    # https://ai.google.dev/gemini-api/docs/pricing
    for name, given, read, made in (
        ("gemini-2.5-flash", "0.30", "0.03", "2.50"),
        ("gemini-2.5-flash-lite", "0.10", "0.01", "0.40"),
        ("gemini-embedding-001", "0.15", "0.15", "0"),
    ):
        price = per_million(input=given, cached=read, output=made)
        yield Model("google", name, name, price, 65_536)
    yield Model(
        "google",
        "gemini-2.5-pro",
        "gemini-2.5-pro",
        per_million(input="1.25", cached="0.125", output="10"),
        65_536,
        long_context=per_million(input="2.50", cached="0.25", output="15"),
    )

    # https://aws.amazon.com/bedrock/pricing/
    for name, given, read, write, made in (
        ("amazon.nova-micro-v1:0", "0.035", "0.00875", "0.035", "0.14"),
        ("us.anthropic.claude-haiku-4-5-20251001-v1:0", "1.1", "0.11", "1.375", "5.5"),
        ("global.anthropic.claude-haiku-4-5-20251001-v1:0", "1", "0.10", "1.25", "5"),
    ):
        rate = per_million(input=given, cached=read, cache_write_5m=write, output=made)
        yield Model("aws", name, name, rate, 64_000)

    for name, given, made in (
        ("us.meta.llama3-3-70b-instruct-v1:0", "0.72", "0.72"),
        ("amazon.titan-text-express-v1", "0.20", "0.60"),
        ("mistral.mistral-large-2402-v1:0", "4", "12"),
        ("amazon.titan-embed-text-v2:0", "0.02", "0"),
    ):
        yield Model("aws", name, name, per_million(input=given, output=made), 8_192)

    name = "claude-haiku-4-5@20251001"
    rate = per_million(input="1", cached="0.10", cache_write_5m="1.25", output="5")
    yield Model("google", name, name, rate, 64_000)
    rate = per_million(input="1.1", cached="0.11", cache_write_5m="1.375", output="5.5")
    yield Model("google-region", name, name, rate, 64_000)

    # https://cohere.com/pricing and https://docs.cohere.com/docs/command-a (8k of output)
    rate = per_million(input="2.50", output="10")
    yield Model("cohere", "command-a-03-2025", "command-a-03-2025", rate, 8_192)

    rate = per_million(input="0.12", output="0")
    yield Model("cohere", "embed-v4.0", "embed-v4.0", rate)

    def claude(usd: tuple[str, str, str, str, str]) -> Rates:
        given, write_5m, write_1h, read, output = usd
        return per_million(
            input=given,
            output=output,
            cached=read,
            cache_write_5m=write_5m,
            cache_write_1h=write_1h,
        )

    sonnet = claude(("3", "3.75", "6", "0.30", "15"))
    sonnet_long = claude(("6", "7.50", "12", "0.60", "22.50"))
    haiku = claude(("1", "1.25", "2", "0.10", "5"))
    haiku_3 = claude(("0.25", "0.30", "0.50", "0.03", "1.25"))
    yield Model(
        "anthropic",
        "claude-sonnet-4-5",
        "claude-sonnet-4-5-20250929",
        sonnet,
        64_000,
        long_context=sonnet_long,
    )
    yield Model("anthropic", "claude-haiku-4-5", "claude-haiku-4-5-20251001", haiku, 64_000)
    yield Model("anthropic", "claude-3-haiku", "claude-3-haiku-20240307", haiku_3, 4_096)
