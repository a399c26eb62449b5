"""The endpoints of OpenAI's API, for any server that speaks it."""

from collections.abc import Callable

from extauthz.providers.base import CapturedResponse, Endpoint, Request, RequestFacts, billed, free
from extauthz.providers.openai import (
    chat,
    completions,
    embeddings,
    image_edits,
    images,
    responses,
    speech,
    transcriptions,
)
from extauthz.providers.openai.dialect import Dialect
from extauthz.usage import UsageReport

_MODEL_ID = r"[A-Za-z0-9][A-Za-z0-9._:@-]*"
"""One model's name in a path; nothing that a server could read as a way out of that folder."""

_Reader = Callable[[Request, Dialect], RequestFacts]
_UsageReader = Callable[[CapturedResponse, Dialect], UsageReport]

_BILLED: dict[str, tuple[str, _Reader, _UsageReader, tuple[str, ...] | None]] = {
    "chat": ("/chat/completions", chat.read_request, chat.read_usage, None),
    "responses": (
        "/responses",
        responses.read_request,
        responses.read_usage,
        responses.CAP_FIELDS,
    ),
    "completions": (
        "/completions",
        completions.read_request,
        completions.read_usage,
        completions.CAP_FIELDS,
    ),
    "embeddings": ("/embeddings", embeddings.read_request, embeddings.read_usage, ()),
    "images": ("/images/generations", images.read_request, images.read_usage, ()),
    "speech": ("/audio/speech", speech.read_request, speech.read_usage, ()),
    "image_edits": ("/images/edits", image_edits.read_request, images.read_usage, ()),
    "transcriptions": (
        "/audio/transcriptions",
        transcriptions.read_request,
        transcriptions.read_usage,
        (),
    ),
    "translations": (
        "/audio/translations",
        transcriptions.read_translation,
        transcriptions.read_usage,
        (),
    ),
}
"""By name: path, readers, cap fields (None: the dialect's)."""

_FORMS = frozenset(("image_edits", "transcriptions", "translations"))


def billed_endpoint(name: str, prefix: str, dialect: Dialect, *, query: str = "") -> Endpoint:
    """One endpoint that costs money, under a `prefix` of its path (a regular expression)."""
    path, read_request, read_usage, cap_fields = _BILLED[name]
    return billed(
        name,
        prefix + path,
        lambda request: read_request(request, dialect),
        lambda captured: read_usage(captured, dialect),
        query=query,
        cap_fields=dialect.cap_fields if cap_fields is None else cap_fields,
        reads_form=name in _FORMS,
    )


def models(prefix: str, *, query: str = "", name: str = _MODEL_ID) -> Endpoint:
    """The list of models, and one model's page."""
    return free("models", "GET", rf"{prefix}/models(/{name})?", query=query)


def moderations(prefix: str, *, query: str = "") -> Endpoint:
    """Free, says https://platform.openai.com/docs/guides/moderation."""
    return free("moderations", "POST", rf"{prefix}/moderations", query=query)
