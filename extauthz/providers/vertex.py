"""`api: vertex`: Gemini's and Anthropic's models on Vertex AI.

From https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference and
https://docs.claude.com/en/api/claude-on-vertex-ai. The credential is an OAuth access token, which
lives for an hour: a file that is replaced holds it.
"""

from extauthz.providers.anthropic import hosted
from extauthz.providers.base import Adapter, Request, RequestFacts, billed, free
from extauthz.providers.gemini import generate
from extauthz.providers.gemini.refusals import refusal_body

_PROJECT = r"/(v1|v1beta1)/projects/[A-Za-z0-9][A-Za-z0-9_.:-]*"
_GOOGLE = (
    _PROJECT
    + r"/locations/[a-z0-9-]+/publishers/google/models/(?P<model>[A-Za-z0-9][A-Za-z0-9._@-]*)"
)
# Since Claude 4.5 a region costs a tenth more than `global`, which is what the list has.
_ANTHROPIC = (
    _PROJECT + r"/locations/global/publishers/anthropic/models/(?P<model>claude-[A-Za-z0-9._@-]+)"
)
_JSON = r"(\$?alt=json)?"
_EITHER_STREAM = r"(\$?alt=(json|sse))?"


def _message(request: Request) -> RequestFacts:
    return hosted.read_request(request, stream=False, beside=("stream",))


def _streamed_message(request: Request) -> RequestFacts:
    return hosted.read_request(request, stream=True, beside=("stream",))


VERTEX = Adapter(
    price_provider="google",
    endpoints=(
        billed(
            "generate_content",
            _GOOGLE + ":generateContent",
            lambda request: generate.read_request(request, stream=False),
            generate.read_usage,
            query=_JSON,
            cap_fields=generate.CAP_FIELDS,
        ),
        billed(
            "stream_generate_content",
            _GOOGLE + ":streamGenerateContent",
            lambda request: generate.read_request(request, stream=True),
            generate.read_usage,
            query=_EITHER_STREAM,
            cap_fields=generate.CAP_FIELDS,
        ),
        billed(
            "raw_predict",
            _ANTHROPIC + ":rawPredict",
            _message,
            hosted.read_usage,
            cap_fields=hosted.CAP_FIELDS,
        ),
        billed(
            "stream_raw_predict",
            _ANTHROPIC + ":streamRawPredict",
            _streamed_message,
            hosted.read_usage,
            cap_fields=hosted.CAP_FIELDS,
        ),
        free(
            "count_message_tokens",
            "POST",
            _PROJECT + r"/locations/[a-z0-9-]+/publishers/anthropic/models/count-tokens:rawPredict",
        ),
        free("count_tokens", "POST", _GOOGLE + ":countTokens", query=_JSON),
    ),
    refusal_body=refusal_body,
)
