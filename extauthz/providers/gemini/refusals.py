"""Refusals as Google's SDKs know them."""

import json

from extauthz.providers.base import Refusal
from extauthz.reasons import Reason

# google.rpc.Code by HTTP status, https://cloud.google.com/apis/design/errors
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}


def refusal_body(refusal: Refusal) -> bytes:
    """`{"error": {code, message, status, details}}`, the reason in an `ErrorInfo`."""
    error: dict[str, object] = {
        "code": refusal.status,
        "message": refusal.message,
        "status": _STATUS.get(refusal.status, "FAILED_PRECONDITION"),
    }
    if refusal.reason is not Reason.OK:
        error["details"] = [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": refusal.reason.value,
                "domain": "extauthz",
                "metadata": {"decision": refusal.decision_id, **refusal.details},
            }
        ]
    return json.dumps({"error": error}).encode()
