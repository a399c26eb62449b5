"""`api: openai`."""

from extauthz.providers.base import Adapter, billed, free
from extauthz.providers.openai import chat
from extauthz.providers.openai.refusals import refusal_body

MODEL_ID = r"[A-Za-z0-9][A-Za-z0-9._:@-]*"
"""One model's name in a path; nothing that a server could read as a way out of that folder."""

OPENAI = Adapter(
    price_provider="openai",
    endpoints=(
        billed(
            "chat",
            "/v1/chat/completions",
            chat.read_request,
            chat.read_usage,
            cap_fields=chat.CAP_FIELDS,
        ),
        free("models", "GET", f"/v1/models(/{MODEL_ID})?"),
    ),
    refusal_body=refusal_body,
)
