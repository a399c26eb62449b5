"""Refusals as Anthropic's SDKs know them."""

import json

from extauthz.providers.base import Refusal

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "api_error",
}


def refusal_body(refusal: Refusal) -> bytes:
    """`{"type": "error", "error": {type, message}}`, see https://docs.claude.com/en/api/errors."""
    error = {
        "type": _ERROR_TYPES.get(refusal.status, "invalid_request_error"),
        "message": refusal.message,
        "code": refusal.reason.value,
        **refusal.details,
    }
    body = {"type": "error", "error": error, "request_id": refusal.decision_id}
    return json.dumps(body).encode()
