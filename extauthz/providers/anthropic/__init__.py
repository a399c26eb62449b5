"""`api: anthropic`."""

from extauthz.providers.anthropic import messages
from extauthz.providers.anthropic.refusals import refusal_body
from extauthz.providers.base import Adapter, billed, free

_BETA = "(beta=true)?"
"""What the SDK's `client.beta` writes behind its paths; the header says which."""

ANTHROPIC = Adapter(
    price_provider="anthropic",
    endpoints=(
        billed(
            "messages",
            "/v1/messages",
            messages.read_request,
            messages.read_usage,
            query=_BETA,
            cap_fields=messages.CAP_FIELDS,
        ),
        free("count_tokens", "POST", "/v1/messages/count_tokens", query=_BETA),
        free("models", "GET", r"/v1/models(/[A-Za-z0-9][A-Za-z0-9._:@-]*)?", query=_BETA),
    ),
    refusal_body=refusal_body,
    credential_header="x-api-key",
    credential_prefix="",
)
