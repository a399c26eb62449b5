"""`api: gemini`: Google's Gemini API, https://ai.google.dev/api."""

from extauthz.providers.base import Adapter, billed, free
from extauthz.providers.gemini import embeddings, generate
from extauthz.providers.gemini.refusals import refusal_body

_MODEL = r"/(v1|v1beta|v1alpha)/models/(?P<model>[A-Za-z0-9][A-Za-z0-9._-]*)"
_JSON = r"(\$?alt=json)?"
_EITHER_STREAM = r"(\$?alt=(json|sse))?"
_PAGE = r"((pageSize=[0-9]+|pageToken=[A-Za-z0-9_.%-]*)(&|$))*"

GEMINI = Adapter(
    price_provider="google",
    endpoints=(
        billed(
            "generate_content",
            _MODEL + ":generateContent",
            lambda request: generate.read_request(request, stream=False),
            generate.read_usage,
            query=_JSON,
            cap_fields=generate.CAP_FIELDS,
        ),
        billed(
            "stream_generate_content",
            _MODEL + ":streamGenerateContent",
            lambda request: generate.read_request(request, stream=True),
            generate.read_usage,
            query=_EITHER_STREAM,
            cap_fields=generate.CAP_FIELDS,
        ),
        billed(
            "embed_content",
            _MODEL + ":embedContent",
            embeddings.read_request,
            embeddings.read_usage,
            query=_JSON,
        ),
        billed(
            "batch_embed_contents",
            _MODEL + ":batchEmbedContents",
            embeddings.read_batch,
            embeddings.read_usage,
            query=_JSON,
        ),
        free("count_tokens", "POST", _MODEL + ":countTokens", query=_JSON),
        free("models", "GET", rf"/(v1|v1beta|v1alpha)/models|{_MODEL}", query=_PAGE),
    ),
    refusal_body=refusal_body,
    credential_header="x-goog-api-key",
    credential_prefix="",
    key_parameter="key",
)
