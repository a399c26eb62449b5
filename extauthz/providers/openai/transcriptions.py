"""`audio/transcriptions` and `audio/translations`: sound that is sent as a file of a form.

https://platform.openai.com/docs/api-reference/audio/createTranscription. Models bill tokens or
seconds of sound. Those of tokens are bounded by the model's context window and its longest answer
(https://platform.openai.com/docs/models/gpt-4o-transcribe): sound that is not cut into chunks is
read as a single block. Nothing in a request bounds its seconds: a header can name any rate, and
silence takes next to nothing in FLAC and Opus. So the config has to.
"""

from math import ceil, isfinite
from typing import Any

from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.captured import decode_object, decode_string
from extauthz.providers.multipart import Form, parse_form
from extauthz.providers.openai.dialect import Dialect
from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

_FIELDS = frozenset((
    "chunking_strategy", "include[]", "keywords[]", "known_speaker_names[]",
    "known_speaker_references[]", "language", "languages[]", "model", "prompt", "response_format",
    "stream", "temperature", "timestamp_granularities[]",
))  # fmt: skip
_TRANSLATION_FIELDS = frozenset(("model", "prompt", "response_format", "temperature"))
_FILES = frozenset(("file",))

_BY_SECONDS = ("whisper-1", "gpt-transcribe")
"""https://platform.openai.com/docs/pricing: by the minute, rounded to the nearest second."""

_COUNT_MAX = 1_000_000_000


def read_request(request: Request, dialect: Dialect) -> RequestFacts:
    """The facts of sound to be written down."""
    return _facts(parse_form(request, _FIELDS, _FILES), dialect)


def read_translation(request: Request, dialect: Dialect) -> RequestFacts:
    """The facts of sound to be written down in English."""
    return _facts(parse_form(request, _TRANSLATION_FIELDS, _FILES), dialect)


def _facts(form: Form, dialect: Dialect) -> RequestFacts:
    model, stream = form.name("model"), form.flag("stream")
    dialect.refuse_unbounded(model)
    if not form.files_bytes.get("file"):
        raise RequestError(Reason.UNPARSEABLE_BODY, "'file' must be a file")
    if model in _BY_SECONDS:
        return RequestFacts(
            model=model,
            stream=stream,
            input_tokens_max=0,
            output_tokens_cap=0,
            bills=("audio_hours",),
            counted={"audio_seconds": None},
        )
    if "chunking_strategy" in form.fields:
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "sound that is cut into chunks is answered chunk by chunk, and nothing bounds how many "
            "they are: leave out 'chunking_strategy'",
        )
    return RequestFacts(
        model=model,
        stream=stream,
        input_tokens_max=None,
        output_tokens_cap=None,
        media=True,
        heard=True,
    )


def read_usage(captured: CapturedResponse, dialect: Dialect) -> UsageReport:
    """The root-level `usage`, of a stream that of `transcript.text.done`; texts tell none."""
    del dialect
    usage = decode_object(captured.usage)
    if usage is None:
        return UNKNOWN_USAGE
    amounts = _seconds(usage) if usage.get("type") == "duration" else _tokens(usage)
    if amounts is None:
        return UNKNOWN_USAGE
    exactness = Exactness.LOWER_BOUND if captured.error else Exactness.EXACT
    return UsageReport(exactness, amounts, decode_string(captured.model))


def _seconds(usage: dict[str, Any]) -> dict[str, int] | None:
    seconds: Any = usage.get("seconds")
    if type(seconds) not in (int, float) or not isfinite(seconds):
        return None
    return {"audio_seconds": ceil(seconds)} if 0 <= seconds <= _COUNT_MAX else None


def _tokens(usage: dict[str, Any]) -> dict[str, int] | None:
    """Tokens of which sound has a price of its own; None where it is not said how many those are.

    genai-prices reads this shape of usage in no answer but those of realtime sessions.
    """
    details = usage.get("input_token_details")
    if not isinstance(details, dict):
        return None
    counts: list[Any] = [
        usage.get(key) for key in ("input_tokens", "output_tokens", "total_tokens")
    ]
    counts += [details.get(key) for key in ("audio_tokens", "text_tokens")]
    if any(type(count) is not int or not 0 <= count <= _COUNT_MAX for count in counts):
        return None
    given, made, total, heard, read = counts
    if heard + read != given or given + made != total:
        return None
    return {"input_tokens": given, "input_audio_tokens": heard, "output_tokens": made}
