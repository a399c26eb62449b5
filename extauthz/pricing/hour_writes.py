"""What it costs to write Claude's cache for an hour, where a list has five minutes only.

"1-hour cache write tokens are 2 times the base input tokens price":
https://docs.claude.com/en/docs/build-with-claude/prompt-caching#pricing. AWS and Google sell it so
too; their lists lack it for the older models, and genai-prices would reckon five minutes.
"""

from copy import copy
from decimal import Decimal

from genai_prices import types

_TIMES = Decimal(2)


def with_hour_writes(prices: types.ModelPrice, model_id: str) -> types.ModelPrice:
    """A model's prices with that of an hour; `model_id` is the list's."""
    listed = vars(prices)
    rate = listed.get("input_mtok")
    if "claude" not in model_id or rate is None or listed.get("cache_write_mtok") is None:
        return prices
    if listed.get("cache_write_1h_mtok") is not None:
        return prices
    more = copy(prices)
    if isinstance(rate, Decimal):
        hour: Decimal | types.TieredPrices = rate * _TIMES
    else:
        tiers = [types.Tier(start=tier.start, price=tier.price * _TIMES) for tier in rate.tiers]
        hour = types.TieredPrices(base=rate.base * _TIMES, tiers=tiers)
    vars(more)["cache_write_1h_mtok"] = hour
    return more
