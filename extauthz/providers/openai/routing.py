"""OpenRouter's ways to let it choose: other models to fall back to, and providers of a model.

From https://openrouter.ai/docs/guides/routing/model-fallbacks: of `models`, the first that answers
is billed, and the answer names it. From .../routing/provider-selection: `provider` says who may
answer, and no one dearer than its `max_price` does, in USD per million tokens of the prompt and of
the completion, per request and per picture that goes in. That is written into every call, so that
the price that was reserved at is a bound. It has no field for pictures that come out, for video and
files, and of sound it does not say what a unit is; all of these can have prices of their own
(`PublicPricing` of https://openrouter.ai/openapi.json), so they are refused.
"""

import re
from collections.abc import Sequence
from typing import Any, NoReturn

from extauthz.providers.base import CapSlot, RequestError
from extauthz.providers.openai.dialect import SEARCHES, TEXT_PARTS, Dialect
from extauthz.providers.splice import nested_cap_slot
from extauthz.providers.strict_json import read_list, read_string
from extauthz.reasons import Reason

PARAMETERS = frozenset(("models", "provider", "route"))
PARTS = frozenset((*TEXT_PARTS, "image_url"))
"""What a message may hold: what the highest price has a field for."""

UNBOUNDED_MODELS = re.compile(
    rf"^openrouter/|:online|:nitro|:exacto|@|sonar|multi-agent|{SEARCHES}|"
    r"image|banana|omni|audio|tts|lyria"
)
"""Its own choices among all models; searches; presets (`@preset/…`), which may name other models
and plugins; and models that make pictures and sound, whether a call asks for them or not."""

_MODELS_MAX = 16

# All that leaves the choice among those who are within the price. Not here: `max_price`, which is
# written by this service, and what the next version of the API brings.
_PREFERENCES = frozenset((
    "allow_fallbacks", "data_collection", "enforce_distillable_text", "ignore", "only", "order",
    "preferred_max_latency", "preferred_min_throughput", "quantizations", "require_parameters",
    "sort", "zdr",
))  # fmt: skip


def read_models(document: dict[str, Any], dialect: Dialect) -> tuple[str, ...]:
    """Every model that may answer, in the order in which they are tried.

    Raises:
        RequestError: a list that is none, or has a model that its tokens do not bound.
    """
    listed = read_list(document, "models")
    if len(listed) > _MODELS_MAX or document.get("route") not in (None, "fallback"):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            f"'models' with more than {_MODELS_MAX} models, or a 'route' other than 'fallback', is "
            "not bounded: send the call without it",
        )
    names = [read_string({"models": name}, "models") for name in listed]
    if document.get("model") is not None or not names:
        names.insert(0, read_string(document, "model"))
    for name in names:
        dialect.refuse_unbounded(name)
    return tuple(dict.fromkeys(names))


def input_readings(body: bytes, models: Sequence[str]) -> int:
    """How often the input's price can be billed for it, written to a cache: twice at most.

    https://openrouter.ai/docs/guides/best-practices/prompt-caching: marked blocks of Claude's and
    Qwen's cost 1.25 times the input, Claude's twice for an hour, and Gemini's the input and five
    minutes of storage, of which the list has the storage only; of OpenAI's models the newest are
    written without a mark, which the list knows of each by its own name, and not of `~…-latest`.
    """
    # The word may stand there in an escaped spelling; then assume it does.
    marked = any(mark in body for mark in (b"cache_control", b"prompt_cache_breakpoint", b"\\u"))
    return 2 if marked or any(name.startswith("~") for name in models) else 1


def refuse_unlimited() -> NoReturn:
    """Refuse what the highest price has no field for.

    Raises:
        RequestError: `unmetered_endpoint`.
    """
    raise RequestError(
        Reason.UNMETERED_ENDPOINT,
        "but for text and for pictures that go in, no highest price bounds what a router's "
        "providers charge: send the call without the rest, or to the model's provider itself",
    )


def price_slot(document: dict[str, Any], body: bytes) -> CapSlot:
    """Where `provider.max_price` goes.

    Raises:
        RequestError: `provider` is no object, or has a preference that is not known.
    """
    given = document.get("provider")
    if given is not None and not isinstance(given, dict):
        raise RequestError(Reason.UNPARSEABLE_BODY, "'provider' must be an object")
    if not _PREFERENCES.issuperset(given or ()):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "'provider' has a preference that is not known to be bounded ('max_price' is written "
            "by this service): send the call without it. Those that are: "
            f"{', '.join(sorted(_PREFERENCES))}",
        )
    return nested_cap_slot(document, body, "provider", "max_price")
