"""AWS's signature of a request, checked as AWS documents it.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import quote

from extauthz.sandbox.wire import Refusal

ACCESS_KEY_ID = "AKIASANDBOX"
SECRET_ACCESS_KEY = "sandbox-aws-secret"  # noqa: S105 - the sandbox's own

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, ?"
    r"SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})"
)


def verify(method: str, raw_path: str, headers: Mapping[str, str], body: bytes) -> None:
    """Refuse a request that is not signed, all of it, with the sandbox's own key."""
    found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if found is None:
        raise Refusal(403, "Missing Authentication Token")
    key_id, date, region, service, names, signature = found.groups()
    if key_id != ACCESS_KEY_ID or service != "bedrock":
        raise Refusal(403, "The security token included in the request is invalid.")
    path, _, query = raw_path.partition("?")
    payload = sha256(body).hexdigest()
    canonical = "\n".join(
        [
            method,
            "/".join(quote(part, safe="-_.~") for part in path.split("/")),
            query,
            *(f"{name}:{' '.join(headers[name].split())}" for name in names.split(";")),
            "",
            names,
            payload,
        ]
    )
    scope = f"{date}/{region}/{service}/aws4_request"
    hashed = sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers.get("x-amz-date", ""), scope, hashed])
    key = f"AWS4{SECRET_ACCESS_KEY}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signature):
        raise Refusal(403, "The request signature we calculated does not match yours.")
