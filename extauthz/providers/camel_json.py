"""JSON bodies of objects within objects, whose keys are in camel case: Google's and AWS's.

Google's are defined as protocol buffers. Such a server takes each field under two names,
`maxOutputTokens` and `max_output_tokens`, and a single message where a list is meant. So fields are
known by one name, and one that stands there under both is refused. Source:
https://protobuf.dev/programming-guides/json.
"""

import re
from collections.abc import Iterator
from typing import Any

from extauthz.providers.base import RequestError
from extauthz.reasons import Reason

_UNDERSCORE = re.compile(r"_([a-z0-9])")


def fields_of(message: Any, known: frozenset[str], what: str) -> dict[str, Any]:
    """A message's fields by their names in camel case; absent and null are an empty message.

    Raises:
        RequestError: it is no object, has a field twice, or one that is not `known` to be bounded
            by what stands in the request (the text names none: it could be a secret).
    """
    if message is None:
        return {}
    if not isinstance(message, dict):
        raise RequestError(Reason.UNPARSEABLE_BODY, f"{what} must be an object")
    fields: dict[str, Any] = {}
    for key, value in message.items():
        name = camel(key)
        if name not in known:
            raise RequestError(
                Reason.UNMETERED_ENDPOINT,
                f"{what} has a field that cannot be metered: send the call without it. "
                f"Those that can: {', '.join(sorted(known))}",
            )
        if name in fields:
            raise RequestError(
                Reason.AMBIGUOUS_BODY, f"{what} has '{name}' in two spellings: send it once"
            )
        fields[name] = value
    return fields


def known_fields(message: Any, known: frozenset[str], what: str) -> dict[str, Any]:
    """As `fields_of`, where each field has one name only.

    Raises:
        RequestError: it is no object, or has a field that is not `known`.
    """
    if message is None:
        return {}
    if not isinstance(message, dict):
        raise RequestError(Reason.UNPARSEABLE_BODY, f"{what} must be an object")
    if not known.issuperset(message):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            f"{what} has a field that cannot be metered: send the call without it. "
            f"Those that can: {', '.join(sorted(known))}",
        )
    return message


def camel(key: str) -> str:
    """`max_output_tokens` as `maxOutputTokens`."""
    return _UNDERSCORE.sub(lambda found: found[1].upper(), key)


def spelling(message: dict[str, Any], name: str) -> str | None:
    """How a message itself spells one of its fields; None: it is not there."""
    return next((key for key in message if camel(key) == name), None)


def each(value: Any) -> Iterator[Any]:
    """The items of a list; one message may stand for a list of one."""
    if isinstance(value, list):
        yield from value
    elif value is not None:
        yield value
