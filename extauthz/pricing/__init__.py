"""Prices, the most a call can cost, and what it did cost."""

from extauthz.pricing.bill import BillLine, total_nanousd
from extauthz.pricing.estimate import Estimate, RateLimits, estimate_of, rate_limits
from extauthz.pricing.price_book import (
    CONFIG_PRICE,
    PRICE_LIST_VERSION,
    OwnPrice,
    PriceBook,
    PricedModel,
)

__all__ = [
    "CONFIG_PRICE",
    "PRICE_LIST_VERSION",
    "BillLine",
    "Estimate",
    "OwnPrice",
    "PriceBook",
    "PricedModel",
    "RateLimits",
    "estimate_of",
    "rate_limits",
    "total_nanousd",
]
