"""What goes into a model of Google's: contents made of parts."""

from typing import Any

from extauthz.providers.base import RequestError
from extauthz.providers.camel_json import each, fields_of
from extauthz.reasons import Reason

# https://ai.google.dev/api/caching#Part
_PART = frozenset((
    "codeExecutionResult", "executableCode", "fileData", "functionCall", "functionResponse",
    "inlineData", "mediaResolution", "partMetadata", "text", "thought", "thoughtSignature",
    "videoMetadata",
))  # fmt: skip
_CONTENT = frozenset(("parts", "role"))
_RESPONSE = frozenset(("id", "name", "parts", "response", "scheduling", "willContinue"))
_MEDIA = ("fileData", "inlineData", "mediaResolution", "videoMetadata")


def holds_media(*values: Any) -> bool:
    """Whether contents (messages or lists of them) are more than text, which is not looked at.

    Raises:
        RequestError: a part of a kind that is not known.
    """
    media = False
    for value in values:
        for content in each(value):
            for part in each(fields_of(content, _CONTENT, "a content").get("parts")):
                fields = fields_of(part, _PART, "a part")
                response = fields_of(
                    fields.get("functionResponse"), _RESPONSE, "a functionResponse"
                )
                media |= any(fields.get(kind) is not None for kind in _MEDIA)
                media |= bool(response.get("parts"))
    return media


def model_in_body(value: Any, path_model: str) -> None:
    """A body may repeat the path's model; it must not name another.

    Raises:
        RequestError: `ambiguous_body`.
    """
    if value is not None and value not in (path_model, f"models/{path_model}"):
        raise RequestError(
            Reason.AMBIGUOUS_BODY, "'model' in the body is not the one in the path: leave it out"
        )
