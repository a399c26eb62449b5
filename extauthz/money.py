"""Money is an integer number of nano-USD (1 USD = 1_000_000_000); floats never touch it.

A `Decimal` is allowed while a price is being worked out; it becomes an integer exactly once per
call, rounded up (`ceil_nanousd`), so that a rounding error is never in the agent's favour.
"""

from decimal import ROUND_CEILING, Decimal, InvalidOperation

NANOUSD_PER_USD = 1_000_000_000

AMOUNT_MAX = 2**52
"""Largest limit or operand of the ledger. Lua compares amounts as doubles, exact below 2**53;
one bit is left so that the sum of two amounts is exact too. In nano-USD: 4.5 million USD."""


_NANOUSD = Decimal("1e-9")
_USD_MAX = Decimal(AMOUNT_MAX) / NANOUSD_PER_USD


class AmountError(ValueError):
    """An amount of money that is not a decimal number in the allowed range."""


def parse_usd(value: Decimal | int | str) -> int:
    """Read an amount in USD into nano-USD.

    Raises:
        AmountError: not a number, negative, finer than a nano-USD, or above `AMOUNT_MAX`.
    """
    if isinstance(value, (bool, float)):  # 0.1 as a float is not 0.1
        raise AmountError(f"{value!r} is not an amount in USD, write for example 25.00")
    try:
        usd = Decimal(value)
    except (InvalidOperation, ValueError, TypeError) as error:
        raise AmountError(f"{value!r} is not an amount in USD, write for example 25.00") from error
    if not usd.is_finite() or usd < 0:
        raise AmountError(f"{value} USD: an amount is zero or more")
    # Comparisons are exact whatever the number of digits; a product would be rounded to 28.
    if usd > _USD_MAX:
        raise AmountError(f"{value} USD: an amount is at most {format_usd(AMOUNT_MAX)} USD")
    if usd != usd.quantize(_NANOUSD):
        raise AmountError(f"{value} USD: an amount has at most nine decimal places")
    return int(usd * NANOUSD_PER_USD)


def ceil_nanousd(usd: Decimal) -> int:
    """The cost of one call in nano-USD, rounded up once.

    Raises:
        AmountError: not a finite number of zero or more; a price list can be wrong, a bill not.
    """
    if not usd.is_finite() or usd < 0:
        raise AmountError(f"a cost of {usd} USD is not a finite number of zero or more")
    return int((usd * NANOUSD_PER_USD).to_integral_value(rounding=ROUND_CEILING))


def format_usd(nanousd: int) -> str:
    """An exact decimal text in USD with at least two decimal places: `12.50`, `0.0001875`."""
    sign = "-" if nanousd < 0 else ""
    whole, fraction = divmod(abs(nanousd), NANOUSD_PER_USD)
    digits = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{digits}"
