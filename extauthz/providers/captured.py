"""Reading what Envoy captured of a response: raw JSON texts of root-level fields.

A number that is no whole number, is negative or absurd makes the whole usage unknown: then the
reservation is charged, and a broken or hostile upstream cannot make a call cheaper than that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jiter
from genai_prices import data_snapshot, types

_COUNT_MAX = 1_000_000_000
_NAME_MAX = 256


def decode_object(text: str | None) -> dict[str, Any] | None:
    """A JSON object, or None."""
    value = _decode(text)
    return value if isinstance(value, dict) else None


def decode_string(text: str | None) -> str | None:
    """A JSON string of a name's length, or None."""
    value = _decode(text)
    return value if isinstance(value, str) and len(value) <= _NAME_MAX else None


def extract(
    provider: str, flavor: str, usage: Mapping[str, Any], *, root: str = "usage"
) -> dict[str, int] | None:
    """Usage by kind in the keys of genai-prices, from a provider's usage object; None: unreadable.

    `flavor` names which of the provider's APIs answered, `root` the field that its usage is.
    """
    snapshot = data_snapshot.get_snapshot()
    try:
        source = snapshot.find_provider(None, provider, None)
        if not _is_well_typed(source, flavor, usage):
            return None
        _, found = source.extract_usage({root: usage}, api_flavor=flavor)
    except (LookupError, ValueError, TypeError):
        return None
    amounts: dict[str, int] = {}
    for kind, value in vars(found).items():
        if type(value) is not int or not 0 <= value <= _COUNT_MAX:
            return None
        amounts[kind] = value
    return amounts


def _is_well_typed(source: types.Provider, flavor: str, usage: Mapping[str, Any]) -> bool:
    """Whether every count that is there is a whole number.

    genai-prices passes over what is not, and cache writes passed over are money not charged.
    """
    mappings = [e.mappings for e in source.extractors or () if e.api_flavor == flavor]
    paths = [mapping.path for mapping in (mappings[0] if mappings else ())]
    return all(_counts(usage, [path] if isinstance(path, str) else path) for path in paths)


def _counts(value: Any, path: Sequence[str | types.ArrayMatch]) -> bool:
    """Whether a path leads to a whole number, or to nothing."""
    for at, step in enumerate(path):
        if value is None:
            return True
        if isinstance(step, types.ArrayMatch):
            rest = path[at + 1 :]
            return isinstance(value, list) and all(_counts(item, rest) for item in value)
        if not isinstance(value, Mapping):
            return False
        value = value.get(step)
    return value is None or type(value) is int


def _decode(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return jiter.from_json(text.encode(), allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError:
        return None
