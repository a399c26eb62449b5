"""Refusals as AWS's SDKs know them: the kind of error stands in a header."""

import json

from extauthz.providers.base import Refusal

_TYPES = {
    400: "ValidationException",
    401: "AccessDeniedException",
    402: "ServiceQuotaExceededException",  # (of AWS's own a 400)
    403: "AccessDeniedException",
    413: "ValidationException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}


def refusal_body(refusal: Refusal) -> bytes:
    """`{"message"}`, and the reason beside it."""
    body = {"message": refusal.message, "code": refusal.reason.value, **refusal.details}
    return json.dumps({**body, "decision": refusal.decision_id}).encode()


def refusal_headers(status: int) -> dict[str, str]:
    """`x-amzn-errortype`."""
    return {"x-amzn-errortype": _TYPES.get(status, "ValidationException")}
