"""`images/generations`, https://platform.openai.com/docs/api-reference/images/create.

An image is billed by its tokens, of which size and quality decide how many: the model's most is in
`pricing/limits`. Each of `n` is billed as a call of its own, the prompt too. Edits and variations
are uploads (multipart) and are not metered.
"""

from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.openai.dialect import Dialect, refuse_unknown
from extauthz.providers.openai.usage import told_usage
from extauthz.providers.strict_json import parse_object, read_count, read_flag, read_string
from extauthz.providers.text_bound import text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UsageReport

_IMAGES_MAX = 10
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
    images = read_count(document, "n", _IMAGES_MAX) or 1
    stream = read_flag(document, "stream")
    if stream and images > 1:
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "a stream of several images tells its usage for each, and only one is read: "
            "leave out 'stream', or ask for one image",
        )
    return RequestFacts(
        model=model,
        stream=stream,
        input_tokens_max=text_tokens_max(request.body) * images,
        output_tokens_cap=None,
        answers=images,
        media=True,
    )


def read_usage(captured: CapturedResponse, dialect: Dialect) -> UsageReport:
    """The root-level `usage`, of a stream that of `image_generation.completed`."""
    del dialect
    return told_usage(
        captured, ("openai", "images"), exact=captured.usage is not None and not captured.error
    )
