"""The root-level `usage` of an answer, in any of OpenAI's shapes."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from extauthz.providers.base import CapturedResponse
from extauthz.providers.captured import decode_object, decode_string, extract
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

TOKENS_MAX = 10_000_000
"""Above any cap or count that an honest request or answer names."""

_USD_MAX = 1_000_000
_TICKS = 10**10
_TICKS_MAX = _USD_MAX * _TICKS


def told_usage(
    captured: CapturedResponse, shape: tuple[str, str], *, exact: bool, tells_cost: bool = False
) -> UsageReport:
    """What `usage` says; `shape` is the provider and the flavor of genai-prices that it has."""
    usage = decode_object(captured.usage)
    if usage is None:
        return UNKNOWN_USAGE
    amounts = extract(*shape, _with_cache_hits(usage) if shape[0] == "deepseek" else usage)
    if amounts is None or not _adds_up(usage, amounts):
        return UNKNOWN_USAGE
    tier = decode_string(captured.service_tier)
    return UsageReport(
        Exactness.EXACT if exact else Exactness.LOWER_BOUND,
        amounts,
        decode_string(captured.model),
        {"service_tier": tier} if tier else {},
        told_cost_usd(usage) if tells_cost else None,
    )


def _with_cache_hits(usage: dict[str, Any]) -> dict[str, Any]:
    """What DeepSeek's cache read, under OpenAI's name; genai-prices does not know DeepSeek's own.

    `prompt_tokens` is the sum of `prompt_cache_hit_tokens` and `prompt_cache_miss_tokens`. From
    https://api-docs.deepseek.com/api/create-chat-completion.
    """
    details = usage.get("prompt_tokens_details")
    hits = usage.get("prompt_cache_hit_tokens")
    if hits is None or details is not None:
        return usage
    return {**usage, "prompt_tokens_details": {"cached_tokens": hits}}


def told_cost_usd(usage: Mapping[str, Any]) -> Decimal | None:
    """What the provider says that it charges; None: it does not say.

    xAI writes `cost_in_usd_ticks`, 10^10 to the dollar: https://docs.x.ai/developers/cost-tracking.
    OpenRouter writes `cost` in credits, of which one is a US dollar, and with a key of the
    customer's own (`is_byok`) what the model's provider charges beside it; Perplexity writes an
    object with `total_cost`. From https://openrouter.ai/docs/use-cases/usage-accounting and
    https://docs.perplexity.ai/api-reference/chat-completions-post.
    """
    ticks = usage.get("cost_in_usd_ticks")
    if ticks is not None:
        return Decimal(ticks) / _TICKS if type(ticks) is int and 0 <= ticks <= _TICKS_MAX else None
    cost = usage.get("cost")
    if isinstance(cost, Mapping):
        cost = cost.get("total_cost")
    total = _usd(cost)
    details = usage.get("cost_details")
    if total is not None and usage.get("is_byok") is True and isinstance(details, Mapping):
        total += _usd(details.get("upstream_inference_cost")) or 0
    return total


def _usd(value: Any) -> Decimal | None:
    """A JSON number as the decimal that it was most likely written as."""
    if type(value) not in (int, float) or not 0 <= value <= _USD_MAX:
        return None
    return Decimal(repr(value))


def _adds_up(usage: Mapping[str, Any], amounts: dict[str, int]) -> bool:
    """Whether `total_tokens` agrees; what it has beyond the parts is added to the output.

    Some servers leave reasoning out of `completion_tokens`, yet bill it, and it is in the total.
    """
    total = usage.get("total_tokens")
    if total is None:
        return True
    if type(total) is not int:
        return False
    unnamed = total - amounts.get("input_tokens", 0) - amounts.get("output_tokens", 0)
    amounts["output_tokens"] = amounts.get("output_tokens", 0) + max(0, unnamed)
    return 0 <= unnamed <= TOKENS_MAX
