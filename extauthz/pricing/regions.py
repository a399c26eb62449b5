"""What a call costs that has to be answered within a region: a tenth more, of newer models.

The list has the price of wherever there is room. A region costs a tenth more at Vertex AI from
Claude 4.5 (https://platform.claude.com/docs/en/build-with-claude/claude-on-vertex-ai) and Gemini 3
on (https://cloud.google.com/vertex-ai/generative-ai/pricing), at Anthropic for `inference_geo`
(https://platform.claude.com/docs/en/manage-claude/data-residency), at OpenAI's regional hosts from
GPT-5.4 on (https://developers.openai.com/api/docs/guides/data-residency). Bedrock's regional prices
are in the list itself.
"""

import re
from collections.abc import Mapping
from copy import copy
from decimal import Decimal

from genai_prices import types

from extauthz.providers.base import REGIONAL

_SURCHARGE = Decimal("1.1")

# Whatever is not known to be older costs more: a missing fact makes a price larger, never smaller.
_OLDER = re.compile(
    r"claude-(v?1|2|instant|3|4-(opus|sonnet)|(opus|sonnet)-4-[01]$)|gemini-([12]\.|embedding-001)|"
    r"gpt-3|gpt-4|chatgpt-4o|o[134](-|$)|gpt-5(\.[0-3])?(-|$)|text-|tts-|whisper|gpt-image-1"
)


def in_region(
    prices: types.ModelPrice, model_id: str, context: Mapping[str, str]
) -> types.ModelPrice:
    """A model's prices as they are in this context; `model_id` is the list's."""
    if not REGIONAL.items() <= context.items() or _OLDER.match(model_id):
        return prices
    dearer = copy(prices)
    for key, rate in vars(prices).items():
        if rate is not None and key.endswith(("_mtok", "_mchars", "_hours")):
            setattr(dearer, key, _times(rate))
    return dearer


def _times(rate: Decimal | types.TieredPrices) -> Decimal | types.TieredPrices:
    if isinstance(rate, Decimal):
        return rate * _SURCHARGE
    tiers = [types.Tier(start=tier.start, price=tier.price * _SURCHARGE) for tier in rate.tiers]
    return types.TieredPrices(base=rate.base * _SURCHARGE, tiers=tiers)
