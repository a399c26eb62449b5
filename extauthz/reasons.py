"""The closed lists of decisions and reasons: one source for code, metrics, refusal bodies and docs.

A client can never add a member, so a label made from one is bounded.
"""

from enum import StrEnum


class Decision(StrEnum):
    """What Check answered."""

    ALLOW = "allow"
    DENY = "deny"
    SHADOW_DENY = "shadow_deny"
    """Allowed, but a shadow budget would have denied it."""
    ERROR = "error"
    """Refused because the infrastructure failed, not because of a budget."""


class Reason(StrEnum):
    """Why Check answered so."""

    OK = "ok"
    UNKNOWN_AGENT = "unknown_agent"
    AGENT_PAUSED = "agent_paused"
    AGENT_WITHOUT_BUDGET = "agent_without_budget"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    UNPRICED_MODEL = "unpriced_model"
    UNMETERED_ENDPOINT = "unmetered_endpoint"
    UNKNOWN_ROUTE = "unknown_route"
    TUNNEL_REFUSED = "tunnel_refused"
    """Envoy's own: CONNECT, or an upgrade of the connection."""
    MALFORMED_REQUEST = "malformed_request"
    """Envoy's own: HTTP that two servers could read in two ways, or that never ends."""
    UNPARSEABLE_BODY = "unparseable_body"
    AMBIGUOUS_BODY = "ambiguous_body"
    BODY_TOO_LARGE = "body_too_large"
    BUDGET_EXHAUSTED = "budget_exhausted"
    BUDGET_HELD = "budget_held"
    REQUEST_TOO_LARGE = "request_too_large"
    TOO_MANY_IN_FLIGHT = "too_many_in_flight"
    LOOP_SUSPECTED = "loop_suspected"
    STORE_UNAVAILABLE = "store_unavailable"
    SERVICE_UNAVAILABLE = "service_unavailable"
