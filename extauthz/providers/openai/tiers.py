"""`service_tier`: which prices a call may be served at.

From https://platform.openai.com/docs/api-reference/chat/create: absent or "auto" may be served, and
billed, as another tier; the answer says which.
"""

from typing import Any

from extauthz.providers.base import RequestError
from extauthz.reasons import Reason

OPENAI_TIERS = frozenset(("auto", "default", "flex", "priority", "fast", "scale"))
"""(`scale` is capacity that was paid for before.)"""

_ANY: tuple[dict[str, str], ...] = (
    {},
    {"service_tier": "default"},
    {"service_tier": "priority"},
    {"service_tier": "fast"},
)
_PREMIUM = ("priority", "fast")


def price_contexts(document: dict[str, Any], tiers: frozenset[str]) -> tuple[dict[str, str], ...]:
    """Every price context that a request may be served at, where the server has these tiers.

    Raises:
        RequestError: a tier that nothing is known of.
    """
    tier = document.get("service_tier")
    if tier is not None and not isinstance(tier, str):
        raise RequestError(Reason.UNPARSEABLE_BODY, "'service_tier' must be a string")
    if tier is not None and tier not in tiers:
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "this 'service_tier' is not known, so neither is its price: send the call without it",
        )
    if tier in ("default", "flex"):
        return ({}, {"service_tier": "default"}, {"service_tier": tier})
    return _ANY if tiers else ({},)


def premium(document: dict[str, Any]) -> dict[str, str] | None:
    """The dearer tier that a request asks for: it needs a price of its own."""
    tier = document.get("service_tier")
    return {"service_tier": tier} if tier in _PREMIUM else None
