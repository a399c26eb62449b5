"""In what the servers that speak OpenAI's API differ, as far as it decides what a call can cost."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from extauthz.providers.base import RequestError
from extauthz.providers.splice import may_spell_otherwise
from extauthz.reasons import Reason

CAP_FIELDS = ("max_completion_tokens", "max_tokens")
"""`max_tokens` is the older name."""

SEARCHES = r"-search-(preview|api)|deep-research"
"""These search the web on every call, and each search is billed beside the tokens."""

TEXT_PARTS = ("text", "refusal")
HOSTED_PARTS = frozenset((*TEXT_PARTS, "image_url", "input_audio", "thinking", "video_url"))
"""What a message may hold where a server would read a file for a fee, or with tools of its own:
https://openrouter.ai/docs/guides/overview/multimodal/pdfs, https://docs.x.ai/docs/guides/files,
https://docs.mistral.ai/capabilities/document_ai/document_qna"""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One server's version of the API; as it stands, OpenAI's own.

    Attributes:
        price_provider: the genai-prices id of its price list.
        usage_shape: the genai-prices provider and flavor whose usage object a chat's is like.
        cap_fields: the names under which it obeys an output cap, the best first. A cap under
            another name bounds nothing.
        asks_for_usage: whether it takes `stream_options`. Those that do not, end every stream with
            the usage.
        parameters: what it takes beyond OpenAI's own and is bounded by what stands in the request.
        tiers: the values of `service_tier` that it knows; "": without any other than the default.
        parts: the kinds of content that the context window bounds; None: of all that it takes.
        tells_usage_of_streams: whether a stream can be metered at all.
        unbounded_models: models that bill more than tokens, or are chosen by the server.
        completion_tokens: what the older `completions` answers with where no cap is named; None:
            as much as the model can.
        indents_tools: whether it may run models whose own templates write tools in lines.
        tells_cost: whether its usage says what it charges (see `usage.told_cost_usd`).
        routes: whether it chooses among providers of a model, and among models at the client's
            word, as OpenRouter does.
    """

    price_provider: str = "openai"
    usage_shape: tuple[str, str] = ("openai", "chat")
    cap_fields: tuple[str, ...] = CAP_FIELDS
    asks_for_usage: bool = True
    parameters: frozenset[str] = frozenset()
    tiers: frozenset[str] = frozenset()
    parts: frozenset[str] | None = None
    tells_usage_of_streams: bool = True
    unbounded_models: re.Pattern[str] = re.compile(SEARCHES)
    completion_tokens: int | None = 16
    indents_tools: bool = True
    tells_cost: bool = False
    routes: bool = False

    def refuse_unbounded(self, model: str) -> None:
        """Refuse a model that its tokens do not bound.

        Raises:
            RequestError: `unmetered_endpoint`.
        """
        if self.unbounded_models.search(model.lower()):
            raise RequestError(
                Reason.UNMETERED_ENDPOINT,
                "this model searches the web, runs tools of its provider, or lets it choose the "
                "model, which cannot be metered: use another one",
            )

    def refuse_stream(self) -> None:
        """Refuse to stream where a stream does not tell its usage.

        Raises:
            RequestError: `unmetered_endpoint`.
        """
        if not self.tells_usage_of_streams:
            raise RequestError(
                Reason.UNMETERED_ENDPOINT,
                "a stream of this 'api-version' does not tell its usage, so it cannot be metered: "
                "use 2024-09-01-preview or a later one, or send the call without 'stream'",
            )


_CACHE_OPTIONS = frozenset(("comparison_response_id", "mode", "prewarm", "ttl"))
_CACHE_LIFE = (None, "30m")
"""By default; a longer one (`12h`) is told apart in the usage, and no list has its price."""


def refuse_long_caches(document: dict[str, Any], body: bytes) -> None:
    """Refuse a cache that is written for longer than the price list knows of.

    https://platform.openai.com/docs/guides/prompt-caching: the request says it for all marks, and
    each mark may for itself.

    Raises:
        RequestError: `unmetered_endpoint`, or `unparseable_body`.
    """
    options = document.get("prompt_cache_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError(Reason.UNPARSEABLE_BODY, "'prompt_cache_options' must be an object")
    refuse_unknown(options or {}, _CACHE_OPTIONS)
    lives = [(options or {}).get("ttl")]
    if b"prompt_cache_breakpoint" in body or may_spell_otherwise(body):
        lives += _lives_of_marks(document)
    if any(life not in _CACHE_LIFE for life in lives):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "a cache with a 'ttl' other than 30m has a price that is not known: leave it out",
        )


def _lives_of_marks(document: dict[str, Any]) -> Iterator[Any]:
    todo: list[Any] = [document]
    while todo:
        holder = todo.pop()
        if isinstance(holder, dict):
            mark = holder.get("prompt_cache_breakpoint")
            yield mark.get("ttl") if isinstance(mark, dict) else None
        inner = holder.values() if isinstance(holder, dict) else holder
        todo += [one for one in inner if isinstance(one, (dict, list))]


def refuse_unknown(document: dict[str, Any], known: frozenset[str]) -> None:
    """Refuse every parameter that is not known to be bounded by what stands in the request.

    Raises:
        RequestError: `unmetered_endpoint`; the text names no parameter, as a client could have
            written a secret there.
    """
    if document.keys() <= known:
        return
    if not known.issuperset(key for key, value in document.items() if value is not None):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "the request has a parameter that cannot be metered: send the call without it. "
            f"Those that can: {', '.join(sorted(known))}",
        )
