"""What a call is billed for, kind by kind: the tokens of each at the rate that applied to them.

The units and how kinds lie within each other (cached tokens within input tokens) are genai-prices'.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from genai_prices import Usage, types
from genai_prices.data_units import unit_data
from genai_prices.decompose import compute_leaf_values
from genai_prices.units import UnitRegistry

from extauthz.money import AmountError, ceil_nanousd

_UNIT_OF_PRICE = {unit.price_key: unit for unit in UnitRegistry(unit_data).units.values()}
_PER_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class BillLine:
    """One kind of usage, at a `rate` in USD for `per` of it.

    What another line counts is left out of the kind that it is a part of: nothing is billed twice.
    """

    kind: str
    count: int
    rate: Decimal
    per: int = _PER_MILLION

    @property
    def usd(self) -> Decimal:
        """Exact: nothing is rounded before the call's total is."""
        return self.rate * self.count / self.per

    def to_json(self) -> list[str | int]:
        """As a ledger row keeps it: `["input_tokens", 567, "0.15"]`."""
        per = [] if self.per == _PER_MILLION else [self.per]
        return [self.kind, self.count, f"{self.rate:f}", *per]

    @classmethod
    def from_json(cls, data: Any) -> "BillLine":
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            kind, count, rate, *per = data
            line = cls(str(kind), int(count), Decimal(rate), *map(int, per))
        except (TypeError, ValueError, InvalidOperation) as error:
            raise ValueError(f"{data!r} is no line of a bill") from error
        if not line.rate.is_finite() or line.per <= 0:
            raise ValueError(f"{data!r} is no line of a bill")
        return line


def bill_of(prices: types.ModelPrice, usage: Usage) -> tuple[BillLine, ...]:
    """What the usage is billed for at these prices, without the kinds that there were none of.

    Raises:
        ValueError: the usage contradicts itself.
    """
    priced = [
        (_UNIT_OF_PRICE[key], rate)
        for key, rate in vars(prices).items()
        if rate is not None and key in _UNIT_OF_PRICE
    ]
    units = {unit.usage_key: unit for unit, _ in priced if unit.usage_key != "requests"}
    counts = {"requests": 1, **compute_leaf_values(set(units), usage, units)}
    is_tiered = any(isinstance(rate, types.TieredPrices) for _, rate in priced)
    input_tokens = usage.input_tokens if is_tiered else 0
    return tuple(
        BillLine(
            unit.usage_key,
            int(counts[unit.usage_key]),
            # The rate of its tier is the price of one, by one.
            types.calc_unit_price(rate, 1, input_tokens, 1),
            unit.per,
        )
        for unit, rate in priced
        if counts[unit.usage_key]
    )


def total_nanousd(lines: Iterable[BillLine]) -> int:
    """What the ledger charges for them: rounded up once.

    Raises:
        AmountError: the lines add up to no amount.
    """
    total = sum((line.usd for line in lines), Decimal(0))
    try:
        return ceil_nanousd(total)
    except InvalidOperation as error:
        raise AmountError(f"a cost of {total} USD") from error
