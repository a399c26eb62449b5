"""`images/edits`, https://platform.openai.com/docs/api-reference/images/createEdit.

A form with a prompt and up to 16 pictures, each billed by its tokens, of which the model's most is
in `pricing/limits`, as is that of a picture that comes out. Each of `n` is reckoned as a call of
its own, whatever goes in too. (`images/variations` no longer accepts requests.)
"""

from extauthz.providers.base import Request, RequestError, RequestFacts
from extauthz.providers.multipart import parse_form
from extauthz.providers.openai.dialect import Dialect
from extauthz.providers.openai.images import (
    IMAGES_MAX,
    must_be_one_picture_each,
    must_tell_one_usage,
)
from extauthz.providers.text_bound import text_tokens_max
from extauthz.reasons import Reason

_FIELDS = frozenset((
    "background", "input_fidelity", "model", "n", "output_compression", "output_format",
    "partial_images", "prompt", "quality", "response_format", "safety_identifier", "size", "stream",
    "user",
))  # fmt: skip
_FILES = frozenset(("image", "image[]", "markup", "mask"))


def read_request(request: Request, dialect: Dialect) -> RequestFacts:
    """The facts of a picture to be changed."""
    form = parse_form(request, _FIELDS, _FILES)
    model, stream = form.name("model"), form.flag("stream")
    dialect.refuse_unbounded(model)
    made = form.count("n", IMAGES_MAX) or 1
    must_tell_one_usage(made, stream=stream)
    must_be_one_picture_each(form.fields.get("output_format"))
    given = sum(map(len, form.files_bytes.values()))
    if not given:
        raise RequestError(Reason.UNPARSEABLE_BODY, "'image' must be a file")
    return RequestFacts(
        model=model,
        stream=stream,
        input_tokens_max=text_tokens_max(form.text.encode()) * made,
        output_tokens_cap=None,
        answers=made,
        images=given * made,
        media=True,
    )
