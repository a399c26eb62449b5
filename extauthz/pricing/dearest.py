"""The dearest way to be billed at some prices, sorted out once and not for each call."""

from decimal import Decimal
from typing import NamedTuple

from genai_prices import types

_PER_MTOK = 1_000_000
_DEARER_MEDIA = ("audio", "image", "video")


class Rates(NamedTuple):
    """In USD: of a million tokens of input, of one token of output, and of the call itself."""

    input: Decimal
    output: Decimal
    request: Decimal


class DearestRates:
    """What a call costs at most, by the length of its input; `price` is what it is of."""

    def __init__(self, price: types.ModelPrice, *, media: bool, cache_writes: bool) -> None:
        """`media`: anything but text goes in or out; `cache_writes`: those can be billed."""
        self.price = price
        self._reachable = {
            key: value
            for key, value in vars(price).items()
            if value is not None
            and (media or not any(kind in key for kind in _DEARER_MEDIA))
            and (cache_writes or "cache_write" not in key)
        }
        tiered = (value for value in self._reachable.values() if not isinstance(value, Decimal))
        starts = {tier.start for value in tiered for tier in value.tiers}
        self._steps = [(start, self._rates(start + 1)) for start in sorted(starts, reverse=True)]
        self._first = self._rates(0)

    def at(self, input_tokens: int) -> Rates:
        """A price that goes by length goes by that of the input."""
        for start, rates in self._steps:
            if input_tokens > start:
                return rates
        return self._first

    def _rates(self, input_tokens: int) -> Rates:
        into, out, request = Decimal(0), Decimal(0), Decimal(0)
        for key, value in self._reachable.items():
            rate = rate_at(value, input_tokens)
            if key == "requests_kcount":
                request = rate / 1000
            elif not key.endswith("_mtok"):
                continue
            elif "output" in key:
                out = max(out, rate)
            else:
                into = max(into, rate)
        return Rates(into, out / _PER_MTOK, request)


def rate_at(value: Decimal | types.TieredPrices | None, input_tokens: int) -> Decimal:
    """The dearest tier that an input of this length reaches; nothing where there is no price."""
    if value is None:
        return Decimal(0)
    if isinstance(value, Decimal):
        return value
    reached = [tier.price for tier in value.tiers if input_tokens > tier.start]
    return max([value.base, *reached])
