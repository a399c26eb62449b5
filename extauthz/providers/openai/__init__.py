"""`api: openai`."""

import re

from extauthz.providers.base import Adapter
from extauthz.providers.openai.dialect import Dialect
from extauthz.providers.openai.endpoints import billed_endpoint, models, moderations
from extauthz.providers.openai.refusals import refusal_body
from extauthz.providers.openai.tiers import OPENAI_TIERS

OPENAI_DIALECT = Dialect(tiers=OPENAI_TIERS, indents_tools=False)

OPENAI = Adapter(
    price_provider="openai",
    endpoints=(
        billed_endpoint("chat", "/v1", OPENAI_DIALECT),
        billed_endpoint("responses", "/v1", OPENAI_DIALECT),
        billed_endpoint("completions", "/v1", OPENAI_DIALECT),
        billed_endpoint("embeddings", "/v1", OPENAI_DIALECT),
        billed_endpoint("images", "/v1", OPENAI_DIALECT),
        billed_endpoint("speech", "/v1", OPENAI_DIALECT),
        billed_endpoint("image_edits", "/v1", OPENAI_DIALECT),
        billed_endpoint("transcriptions", "/v1", OPENAI_DIALECT),
        billed_endpoint("translations", "/v1", OPENAI_DIALECT),
        moderations("/v1"),
        models("/v1"),
    ),
    refusal_body=refusal_body,
    bills_audio_seconds=True,
    # https://developers.openai.com/api/docs/guides/data-residency
    regional_upstream=re.compile(r"https://[a-z]{2}\.api\.openai\.com(/|:|$)"),
)
