"""`audio/speech`, https://platform.openai.com/docs/api-reference/audio/createSpeech.

Billed by the characters to be spoken, where the model has a price for them: then the request tells
its cost exactly, and the answer, which is sound, need not. Models that bill by tokens of sound tell
them nowhere and have no cap, so they are unpriced here.
"""

from extauthz.providers.base import CapturedResponse, Request, RequestFacts
from extauthz.providers.openai.dialect import Dialect, refuse_unknown
from extauthz.providers.strict_json import parse_object, read_string, read_text
from extauthz.usage import UNKNOWN_USAGE, UsageReport

_PARAMETERS = frozenset((
    "input", "instructions", "model", "response_format", "speed", "stream_format", "voice",
))  # fmt: skip


def read_request(request: Request, dialect: Dialect) -> RequestFacts:
    """The facts: how many characters."""
    document = parse_object(request.body)
    model = request.path_model or read_string(document, "model")
    dialect.refuse_unbounded(model)
    refuse_unknown(document, _PARAMETERS)
    spoken = read_text(document, "input") + read_text(document, "instructions")
    return RequestFacts(
        model=model,
        stream=False,
        input_tokens_max=0,
        output_tokens_cap=0,
        bills=("input_mchars",),
        counted={"input_characters": _utf16_length(spoken)},
    )


def read_usage(captured: CapturedResponse, dialect: Dialect) -> UsageReport:
    """Sound tells nothing, so the reservation is charged, which is the cost."""
    del captured, dialect
    return UNKNOWN_USAGE


def _utf16_length(text: str) -> int:
    """The most characters that any way of counting them finds."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
