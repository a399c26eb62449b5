"""The most that a call can cost, at the prices of whatever may answer it."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from genai_prices.data_units import unit_data

from extauthz.ledger import RATE_TOKENS, Slope
from extauthz.money import ceil_nanousd
from extauthz.pricing.dearest import DearestRates, rate_at
from extauthz.providers.base import RequestFacts

_NOTHING = Slope(0, 0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The most that a call can cost and use.

    Attributes:
        nanousd: the cost, rounded up once.
        input_tokens: of the request.
        output_tokens: of all answers.
        cap: the output tokens of one answer that the others reckon with.
        nanousd_under: the cost under a lower cap, rounded up where it has to be.
        tokens_under: the tokens under a lower cap.
    """

    nanousd: int
    input_tokens: int
    output_tokens: int
    cap: int = 0
    nanousd_under: Slope = _NOTHING
    tokens_under: Slope = _NOTHING

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


class Bound(NamedTuple):
    """What bounds a call where one model answers.

    Attributes:
        input_tokens: of one reading of the request.
        cap: the output tokens of one answer.
        rates: at all prices that it may be billed at.
    """

    input_tokens: int
    cap: int
    rates: tuple[DearestRates, ...]


class RateLimits(NamedTuple):
    """The highest rates that may be advertised to a short prompt, in USD per million tokens."""

    input: Decimal
    output: Decimal


def estimate_of(bounds: Sequence[Bound], facts: RequestFacts) -> Estimate:
    """A true upper bound, whichever of several models answers.

    Of several it is a bound rate by rate: who answers may take the input rate of the one and the
    output rate of another, but none above `rate_limits`.
    """
    input_tokens = max(bound.input_tokens for bound in bounds)
    cap = max(bound.cap for bound in bounds)
    output_tokens = cap * facts.answers + facts.extra_output_tokens
    dearest = [_dearest(rates, facts, input_tokens) for bound in bounds for rates in bound.rates]
    fixed, output = map(max, zip(*dearest, strict=True))
    if len(bounds) == 1:
        usd = max(each_fixed + each * output_tokens for each_fixed, each in dearest)
    else:
        usd = fixed + output * output_tokens
    input_tokens *= facts.input_readings
    return Estimate(
        ceil_nanousd(usd),
        input_tokens,
        output_tokens,
        cap,
        Slope(
            ceil_nanousd(fixed + output * facts.extra_output_tokens),
            ceil_nanousd(output * facts.answers * RATE_TOKENS),
        ),
        Slope(input_tokens + facts.extra_output_tokens, facts.answers * RATE_TOKENS),
    )


def rate_limits(bounds: Sequence[Bound]) -> RateLimits:
    """The rates of input and output that an estimate of these bounds holds for.

    Of prices that go by length they are those of a short prompt, which is what is advertised: with
    the rate of a long one, whoever asks that for a short one could take more for a long one.
    """
    rates = [
        (rate_at(rates.price.input_mtok, 0), rate_at(rates.price.output_mtok, 0))
        for bound in bounds
        for rates in bound.rates
    ]
    return RateLimits(*map(max, zip(*rates, strict=True)))


def _dearest(
    rates: DearestRates, facts: RequestFacts, input_tokens: int
) -> tuple[Decimal, Decimal]:
    """The most to be billed at these rates, in USD: but for the output, and a token of it."""
    into, out, request = rates.at(input_tokens)
    beside = request + into * facts.input_readings * input_tokens / 1_000_000
    return beside + _counted(rates, facts) if facts.counted else beside, out


def _counted(rates: DearestRates, facts: RequestFacts) -> Decimal:
    """What is counted beside tokens, at its rate."""
    total = Decimal(0)
    for kind, count in facts.counted.items():
        assert count is not None, f"nothing bounds {kind}, so the call has to be refused"
        rate = vars(rates.price)[unit_data[kind]["price_key"]]
        total += rate_at(rate, count) * count / unit_data[kind]["per"]
    return total
