"""`api: azure`: OpenAI's models on Azure.

From https://learn.microsoft.com/azure/ai-foundry/openai/reference: a call names a *deployment*, in
its path or (under `/openai/v1`) as its `model`; the config says which model that is. A prompt that
the content filter refuses (400, `content_filter`) and a time-out (408) are billed, says
https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter.
"""

from dataclasses import replace

from extauthz.providers.base import UNBILLED_STATUS, Adapter
from extauthz.providers.openai.dialect import Dialect
from extauthz.providers.openai.endpoints import billed_endpoint, models
from extauthz.providers.openai.refusals import refusal_body
from extauthz.providers.openai.tiers import OPENAI_TIERS

_DIALECT = Dialect(price_provider="azure", usage_shape=("azure", "chat"), tiers=OPENAI_TIERS)
# Versions before September 2024 refuse `max_completion_tokens` and `stream_options`:
# https://github.com/openai/openai-python/issues/1724, https://github.com/openai/openai-python/issues/1469
_OLDER = replace(_DIALECT, cap_fields=("max_tokens",), tells_usage_of_streams=False)
# A 400 that names one of these was refused before any model or filter saw it: the `code`s of
# https://platform.openai.com/docs/guides/error-codes for a request that is malformed.
_MALFORMED = frozenset((
    "array_above_max_length", "context_length_exceeded", "decimal_above_max_value",
    "decimal_below_min_value", "empty_array", "integer_above_max_value", "integer_below_min_value",
    "invalid_function_parameters", "invalid_json_schema", "invalid_type", "invalid_value",
    "missing_required_parameter", "string_above_max_length", "unknown_parameter",
    "unsupported_parameter", "unsupported_value",
))  # fmt: skip
_DEPLOYMENT = r"/openai/deployments/(?P<model>[A-Za-z0-9][A-Za-z0-9._-]*)"
_OLD = r"api-version=(2023-[0-9-]+|2024-0[1-8]-[0-9]+)(-preview)?"
_DATED = rf"(?!{_OLD}$)api-version=[A-Za-z0-9.-]+"
_UNDATED = rf"({_DATED})?"

AZURE = Adapter(
    price_provider="azure",
    endpoints=(
        *(
            billed_endpoint(name, _DEPLOYMENT, _DIALECT, query=_DATED)
            for name in ("chat", "completions", "embeddings", "images", "speech")
        ),
        *(
            replace(
                billed_endpoint(name, _DEPLOYMENT, _OLDER, query=_OLD),
                name=f"{name}_before_2024_09",
            )
            for name in ("chat", "completions", "embeddings", "images", "speech")
        ),
        # Endpoints of one name are read alike, wherever the deployment is named.
        *(
            billed_endpoint(name, "/openai/v1", _DIALECT, query=_UNDATED)
            for name in ("chat", "responses", "completions", "embeddings", "images", "speech")
        ),
        billed_endpoint("responses", "/openai", _DIALECT, query=_DATED),
        models("/openai(/v1)?", query=_UNDATED),
    ),
    refusal_body=refusal_body,
    credential_header="api-key",
    credential_prefix="",
    unbilled_status=UNBILLED_STATUS - {400},
    unbilled_codes=_MALFORMED,
    names_deployments=True,
)
