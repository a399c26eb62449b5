"""Prices, the most a call can cost, and what it did cost."""

from extauthz.pricing.price_book import CONFIG_PRICE, Estimate, OwnPrice, PriceBook, PricedModel

__all__ = ["CONFIG_PRICE", "Estimate", "OwnPrice", "PriceBook", "PricedModel"]
