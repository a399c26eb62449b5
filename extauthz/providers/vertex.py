"""`api: vertex`: Gemini's and Anthropic's models on Vertex AI.

From https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference and
https://docs.claude.com/en/api/claude-on-vertex-ai. The credential is an OAuth access token, which
lives for an hour: a file that is replaced holds it.
"""

from dataclasses import replace

from extauthz.providers.anthropic import hosted
from extauthz.providers.base import (
    REGIONAL,
    Adapter,
    CapturedResponse,
    Endpoint,
    Request,
    RequestFacts,
    RequestReader,
    UsageReader,
    billed,
    free,
)
from extauthz.providers.gemini import embeddings, generate, predictions
from extauthz.providers.gemini.refusals import refusal_body
from extauthz.usage import UsageReport

_PROJECT = r"/(v1|v1beta1)/projects/[A-Za-z0-9][A-Za-z0-9_.:-]*"
_GOOGLE = r"/publishers/google/models/(?P<model>[A-Za-z0-9][A-Za-z0-9._@-]*)"
_EMBEDDING = r"/publishers/google/models/(?P<model>gemini-embedding-[A-Za-z0-9._@-]+)"
_ANTHROPIC = r"/publishers/anthropic/models/(?P<model>claude-[A-Za-z0-9._@-]+)"
_GLOBAL = _PROJECT + "/locations/global"
_REGION = _PROJECT + "/locations/(?!global/)[a-z0-9-]+"
_JSON = r"(\$?alt=json)?"
_EITHER_STREAM = r"(\$?alt=(json|sse))?"


def _message(request: Request) -> RequestFacts:
    return hosted.read_request(request, stream=False, beside=("stream",))


def _streamed_message(request: Request) -> RequestFacts:
    return hosted.read_request(request, stream=True, beside=("stream",))


def _either_place(
    name: str,
    path: str,
    read_request: RequestReader,
    read_usage: UsageReader,
    cap_fields: tuple[str, ...] = (),
    query: str = "",
) -> tuple[Endpoint, Endpoint]:
    """An endpoint at `global`, and the same within a region, where it can cost more."""

    def read_regional(request: Request) -> RequestFacts:
        facts = read_request(request)
        contexts = tuple({**context, **REGIONAL} for context in facts.price_contexts)
        return replace(facts, price_contexts=contexts)

    def read_regional_usage(captured: CapturedResponse) -> UsageReport:
        report = read_usage(captured)
        return replace(report, price_context={**report.price_context, **REGIONAL})

    return (
        billed(name, _GLOBAL + path, read_request, read_usage, query=query, cap_fields=cap_fields),
        billed(
            f"{name}_in_region",
            _REGION + path,
            read_regional,
            read_regional_usage,
            query=query,
            cap_fields=cap_fields,
        ),
    )


VERTEX = Adapter(
    price_provider="google",
    endpoints=(
        *_either_place(
            "generate_content",
            _GOOGLE + ":generateContent",
            lambda request: generate.read_request(request, stream=False),
            generate.read_usage,
            generate.CAP_FIELDS,
            _JSON,
        ),
        *_either_place(
            "stream_generate_content",
            _GOOGLE + ":streamGenerateContent",
            lambda request: generate.read_request(request, stream=True),
            generate.read_usage,
            generate.CAP_FIELDS,
            _EITHER_STREAM,
        ),
        *_either_place(
            "embed_content",
            _GOOGLE + ":embedContent",
            embeddings.read_request,
            embeddings.read_usage,
            query=_JSON,
        ),
        *_either_place(
            "batch_embed_contents",
            _GOOGLE + ":batchEmbedContents",
            embeddings.read_batch,
            embeddings.read_usage,
            query=_JSON,
        ),
        *_either_place(
            "predict", _EMBEDDING + ":predict", predictions.read_request, predictions.read_usage
        ),
        *_either_place(
            "raw_predict",
            _ANTHROPIC + ":rawPredict",
            _message,
            hosted.read_usage,
            hosted.CAP_FIELDS,
        ),
        *_either_place(
            "stream_raw_predict",
            _ANTHROPIC + ":streamRawPredict",
            _streamed_message,
            hosted.read_usage,
            hosted.CAP_FIELDS,
        ),
        free(
            "count_message_tokens",
            "POST",
            _PROJECT + r"/locations/[a-z0-9-]+/publishers/anthropic/models/count-tokens:rawPredict",
        ),
        free(
            "count_tokens",
            "POST",
            _PROJECT + r"/locations/[a-z0-9-]+" + _GOOGLE + ":countTokens",
            query=_JSON,
        ),
    ),
    refusal_body=refusal_body,
)
