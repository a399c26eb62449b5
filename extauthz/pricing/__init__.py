"""Prices, the most a call can cost, and what it did cost."""

from extauthz.pricing.price_book import Estimate, OwnPrice, PriceBook, PricedModel

__all__ = ["Estimate", "OwnPrice", "PriceBook", "PricedModel"]
