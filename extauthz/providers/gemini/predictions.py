"""`:predict` of Vertex AI for Gemini's embeddings: the older way, of one text a call.

From https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/text-embeddings-api. An
answer counts text by text, in `predictions[].embeddings.statistics.token_count`; of several, one
would be read. Its other models are billed by characters.
"""

from typing import Any

from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.camel_json import each, fields_of
from extauthz.providers.captured import decode_object
from extauthz.providers.strict_json import parse_object
from extauthz.providers.text_bound import text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

_PARAMETERS = frozenset(("instances", "parameters"))
_INSTANCE = frozenset(("content", "taskType", "title"))
_CONFIG = frozenset(("autoTruncate", "outputDimensionality"))
_TOKENS_MAX = 10_000_000


def read_request(request: Request) -> RequestFacts:
    """The facts of one embedding."""
    assert request.path_model is not None
    document = parse_object(request.body, lower_case=False)
    fields = fields_of(document, _PARAMETERS, "the request")
    fields_of(fields.get("parameters"), _CONFIG, "'parameters'")
    instances = list(each(fields.get("instances")))
    if len(instances) != 1:
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "the tokens of one text a call are told so that they can be read: send one 'instance', "
            "or use embedContent",
        )
    instance = fields_of(instances[0], _INSTANCE, "an instance")
    if not isinstance(instance.get("content"), str):
        raise RequestError(Reason.UNPARSEABLE_BODY, "'content' must be a text")
    return RequestFacts(
        model=request.path_model,
        stream=False,
        input_tokens_max=text_tokens_max(request.body),
        output_tokens_cap=0,
        bills=("input_mtok",),
    )


def read_usage(captured: CapturedResponse) -> UsageReport:
    """The `token_count` of the only prediction; a number there may be written as a decimal."""
    count: Any = (decode_object(captured.usage) or {}).get("token_count")
    if type(count) not in (int, float) or not 0 <= count <= _TOKENS_MAX or count != int(count):
        return UNKNOWN_USAGE
    exact = captured.complete and not captured.error
    return UsageReport(
        Exactness.EXACT if exact else Exactness.LOWER_BOUND, {"input_tokens": int(count)}
    )
