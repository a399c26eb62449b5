"""`images/generations`, https://platform.openai.com/docs/api-reference/images/create.

An image is billed by its tokens, of which size and quality decide how many: the model's most is in
`pricing/limits`. Each of `n` is billed as a call of its own, the prompt too.
"""

from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.openai.dialect import Dialect, refuse_unknown
from extauthz.providers.openai.usage import told_usage
from extauthz.providers.strict_json import (
    parse_object,
    read_count,
    read_flag,
    read_string,
    read_text,
)
from extauthz.providers.text_bound import text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UsageReport

IMAGES_MAX = 10
_ONE_PICTURE = frozenset(("", "png", "jpeg", "webp"))
"""A `gif` is up to 16 pictures, and an `svg` is written by another model."""

_PARAMETERS = frozenset((
    "background", "model", "moderation", "n", "output_compression", "output_format",
    "partial_images", "prompt", "quality", "response_format", "safety_identifier", "size", "stream",
    "style", "user",
))  # fmt: skip


def read_request(request: Request, dialect: Dialect) -> RequestFacts:
    """The facts of a picture to be made."""
    document = parse_object(request.body)
    model = request.path_model or read_string(document, "model")
    dialect.refuse_unbounded(model)
    refuse_unknown(document, _PARAMETERS)
    images = read_count(document, "n", IMAGES_MAX) or 1
    stream = read_flag(document, "stream")
    must_tell_one_usage(images, stream=stream)
    must_be_one_picture_each(read_text(document, "output_format"))
    return RequestFacts(
        model=model,
        stream=stream,
        input_tokens_max=text_tokens_max(request.body) * images,
        output_tokens_cap=None,
        answers=images,
        media=True,
    )


def must_tell_one_usage(images: int, *, stream: bool) -> None:
    """Refuse a stream of several pictures.

    Raises:
        RequestError: `unmetered_endpoint`.
    """
    if stream and images > 1:
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "a stream of several images tells its usage for each, and only one is read: "
            "leave out 'stream', or ask for one image",
        )


def must_be_one_picture_each(output_format: str | None) -> None:
    """Refuse a format of which one answer is more than one picture.

    Raises:
        RequestError: `unmetered_endpoint`.
    """
    if output_format is not None and output_format not in _ONE_PICTURE:
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "'output_format' must be png, jpeg or webp: others are more than one picture, or made "
            "by more than one model",
        )


def read_usage(captured: CapturedResponse, dialect: Dialect) -> UsageReport:
    """The root-level `usage`, of a stream that of its last event (`….completed`)."""
    del dialect
    return told_usage(
        captured, ("openai", "images"), exact=captured.usage is not None and not captured.error
    )
