"""`embedContent` and `batchEmbedContents`: billed for their input only.

From https://ai.google.dev/api/embeddings. Where the answer has no `usageMetadata`, the reservation
is charged: the bytes of the request.
"""

from typing import Any

from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.camel_json import each, fields_of
from extauthz.providers.gemini.contents import holds_media, model_in_body
from extauthz.providers.gemini.generate import read_metadata
from extauthz.providers.strict_json import parse_object
from extauthz.providers.text_bound import text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UsageReport

_PARAMETERS = frozenset((
    "content", "embedContentConfig", "model", "outputDimensionality", "taskType", "title",
))  # fmt: skip
# Not (of Vertex AI) `documentOcr` and `audioTrackExtraction`, which let more in than was sent.
_CONFIG = frozenset(("autoTruncate", "outputDimensionality", "taskType", "title"))
_BATCH = frozenset(("requests",))


def read_request(request: Request) -> RequestFacts:
    """The facts of one embedding."""
    return _facts(request, [parse_object(request.body, lower_case=False)])


def read_batch(request: Request) -> RequestFacts:
    """The facts of several, answered at once."""
    document = parse_object(request.body, lower_case=False)
    return _facts(request, list(each(fields_of(document, _BATCH, "the request").get("requests"))))


def read_usage(captured: CapturedResponse) -> UsageReport:
    """Root-level `usageMetadata`, where there is one."""
    return read_metadata(captured)


def _facts(request: Request, parts: list[Any]) -> RequestFacts:
    assert request.path_model is not None
    media = False
    for part in parts:
        fields = fields_of(part, _PARAMETERS, "the request")
        model_in_body(fields.get("model"), request.path_model)
        fields_of(fields.get("embedContentConfig"), _CONFIG, "'embedContentConfig'")
        media |= holds_media(fields.get("content"))
    if media and len(parts) > 1:
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "several embeddings of more than text are not bounded: ask for one at a time",
        )
    return RequestFacts(
        model=request.path_model,
        stream=False,
        input_tokens_max=None if media else text_tokens_max(request.body),
        output_tokens_cap=0,
        media=media,
        bills=("input_mtok",),
    )
