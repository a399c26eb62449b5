"""The root-level `usage` of an answer, in any of OpenAI's shapes."""

from collections.abc import Mapping
from typing import Any

from extauthz.providers.base import CapturedResponse
from extauthz.providers.captured import decode_object, decode_string, extract
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

TOKENS_MAX = 10_000_000
"""Above any cap or count that an honest request or answer names."""

PREAMBLE_TOKENS = 1024
"""What the provider may add around tools and response formats, beyond the bytes that were sent."""


def told_usage(
    captured: CapturedResponse, flavor: str, *, exact: bool, provider: str = "openai"
) -> UsageReport:
    """What `usage` says; `flavor` names the shape as genai-prices does, for this `provider`."""
    usage = decode_object(captured.usage)
    if usage is None:
        return UNKNOWN_USAGE
    amounts = extract(provider, flavor, usage)
    if amounts is None or not _adds_up(usage, amounts):
        return UNKNOWN_USAGE
    tier = decode_string(captured.service_tier)
    return UsageReport(
        Exactness.EXACT if exact else Exactness.LOWER_BOUND,
        amounts,
        decode_string(captured.model),
        {"service_tier": tier} if tier else {},
    )


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
