"""Refusals as OpenAI's SDKs know them.

See https://platform.openai.com/docs/guides/error-codes.
"""

import json

from extauthz.providers.base import Refusal

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "insufficient_quota",
    503: "server_error",
}


def refusal_body(refusal: Refusal) -> bytes:
    """`{"error": {message, type, code, param}}`."""
    error = {
        "message": refusal.message,
        "type": _ERROR_TYPES.get(refusal.status, "invalid_request_error"),
        "code": refusal.reason.value,
        "param": None,
        "decision_id": refusal.decision_id,
        **refusal.details,
    }
    return json.dumps({"error": error}).encode()
