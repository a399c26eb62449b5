"""Money: integers of nano-USD, never a float, rounded up once."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.money import AMOUNT_MAX, AmountError, ceil_nanousd, format_usd, parse_usd

nanousd = st.integers(0, AMOUNT_MAX)


@given(nanousd)
def test_an_amount_is_read_back_as_it_was_written(amount):
    assert parse_usd(format_usd(amount)) == amount


@given(st.integers(-AMOUNT_MAX, AMOUNT_MAX))
def test_a_written_amount_is_exact_with_two_decimals_at_least(amount):
    text = format_usd(amount)
    assert Fraction(text) == Fraction(amount, 10**9)
    assert len(text.partition(".")[2]) >= 2


def test_a_tenth_is_a_tenth():
    assert parse_usd("0.1") + parse_usd("0.2") == parse_usd("0.3") == 300_000_000


@pytest.mark.parametrize(
    "value",
    [
        "", "x", "1,5", "-1", "-0.000000001", "NaN", "sNaN", "inf", "-Infinity",
        "1e999999999", "1e-999999999", "0.0000000001", "4503599.627370497",
        "1.00000000000000000000000000000000000001", "1e400", None, [], 0.1, 25.0, True,
    ],
)  # fmt: skip
def test_what_is_no_amount_is_refused_and_never_rounded(value):
    with pytest.raises(AmountError):
        parse_usd(value)


@pytest.mark.parametrize(
    ("value", "amount"),
    [("0", 0), ("25", 25 * 10**9), (7, 7 * 10**9), ("1e3", 10**12), (Decimal("1E-9"), 1),
     ("4503599.627370496", AMOUNT_MAX), ("0.10000000000000000000000", 10**8)],
)  # fmt: skip
def test_what_is_an_amount_is_read_exactly(value, amount):
    assert parse_usd(value) == amount


@given(st.decimals(0, 10**6, allow_nan=False, allow_infinity=False, places=15))
def test_a_cost_is_rounded_up_and_by_less_than_one(usd):
    cost = ceil_nanousd(usd)
    assert type(cost) is int
    assert cost == math.ceil(Fraction(usd) * 10**9)


@pytest.mark.parametrize("usd", ["-1e-12", "NaN", "Infinity", "-Infinity"])
def test_a_bill_that_is_no_number_of_zero_or_more_is_an_error(usd):
    with pytest.raises(AmountError):
        ceil_nanousd(Decimal(usd))
