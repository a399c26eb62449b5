"""Reading a request body so that no other reader of it can understand something else.

Two readers of `{"model": "cheap", "model": "dear"}` may disagree, and the one that bills wins. So
what JSON leaves open is refused: a key twice at any depth, numbers beyond a double, bytes that are
not UTF-8, a byte order mark, anything after the document. Source: RFC 8259, sections 4, 6 and 8.
"""

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

import jiter

from extauthz.providers.base import RequestError
from extauthz.reasons import Reason

ROOT_KEYS_MAX = 256
_SECRET_FREE_ERRORS = 60

# What any text of a number beyond a double has: an exponent of three digits, or 300 digits. Sought
# with every digit made a 0 first: a regular expression takes 25 times as long, 0.5 s for 20 MB.
_DIGITS_TO_0 = bytes.maketrans(b"123456789E", b"000000000e")
_HUGE_NUMBERS = (b"0e000", b"0e+000", b"0" * 300)
_DOUBLE_MAX = 2**1024

_JSON_TYPE = re.compile(
    r"""
    ( application/ (?! grpc | x-www-form-urlencoded ) ([a-z0-9_.-]+\+)? json
    | text/json
    | text/plain                                # as some libraries say by default
    )
    ([ \t]* ; [ \t]* charset= (?P<quote>"?) (utf-8|utf8|us-ascii) (?P=quote) )?
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
"""All that a JSON body may be called. A list of what is allowed, as a character set can be named in
more ways than one could forbid (`charset*=us-ascii''utf-7`, `"charset"=utf-7`), and servers differ
in what they take for a space. Envoy itself takes `application/grpc+json` for gRPC."""


def parse_object(body: bytes, *, lower_case: bool = True) -> dict[str, Any]:
    """Parse a body that must be one JSON object.

    An API whose keys are in lower case refuses all others; a reader of any other compares each key
    with those that it knows.

    Raises:
        RequestError: `ambiguous_body` for a duplicate key, else `unparseable_body`. The text never
            quotes the body, which may hold a prompt.
    """
    try:
        document = jiter.from_json(
            body, allow_inf_nan=False, cache_mode="keys", catch_duplicate_keys=True
        )
    except ValueError as error:
        text = str(error)
        if "duplicate key" in text:
            raise RequestError(
                Reason.AMBIGUOUS_BODY,
                "the request body has a key twice in one object" + _place(text) + ": send it once",
            ) from None
        raise RequestError(
            Reason.UNPARSEABLE_BODY,
            "the request body is not strict JSON (UTF-8, no byte order mark)" + _place(text),
        ) from None
    if not isinstance(document, dict):
        raise RequestError(Reason.UNPARSEABLE_BODY, "the request body must be one JSON object")
    if len(document) > ROOT_KEYS_MAX:
        raise RequestError(
            Reason.UNPARSEABLE_BODY, f"the request body has more than {ROOT_KEYS_MAX} root keys"
        )
    if lower_case and (keys := "".join(document)) != keys.casefold():
        # Some readers (Go's encoding/json) take "N" for "n", and the last of the two wins.
        raise RequestError(
            Reason.AMBIGUOUS_BODY,
            "the request body has a root key in upper case, which some servers read as the one in "
            "lower case: write it in lower case",
        )
    if _may_hold_huge_number(body) and not _all_finite(document):
        raise RequestError(
            Reason.UNPARSEABLE_BODY, "the request body has a number that no double can hold"
        )
    return document


def _may_hold_huge_number(body: bytes) -> bool:
    shape = body.translate(_DIGITS_TO_0)
    return any(mark in shape for mark in _HUGE_NUMBERS)


def _all_finite(document: dict[str, Any]) -> bool:
    """Whether every number at any depth is one that all readers can hold: 1e999 is read as inf."""
    todo: list[Any] = [document]
    while todo:
        holder = todo.pop()
        for value in holder.values() if isinstance(holder, dict) else holder:
            if isinstance(value, (dict, list)):
                todo.append(value)
            elif isinstance(value, float):
                if not isfinite(value):
                    return False
            elif type(value) is int and abs(value) >= _DOUBLE_MAX:
                return False
    return True


def _place(text: str) -> str:
    """Jiter ends its errors with the place: keep that, and nothing that quotes the body."""
    _, found, place = text.rpartition(" at line ")
    return f" (line {place})" if found and len(place) < _SECRET_FREE_ERRORS else ""


def must_be_plain(headers: Mapping[str, str], *, form: bool = False) -> None:
    """Refuse a body that its headers call something else than UTF-8, as it is.

    The provider would read other bytes than those that were checked: once inflated, or in another
    character set (`+ACI-` is a quote in UTF-7), they could ask for another model. So could the same
    bytes as a form: `{"model":"cheap","user":"&model=dear&"}` is one too.

    Raises:
        RequestError: `unparseable_body`.
    """
    if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise RequestError(
            Reason.UNPARSEABLE_BODY, "the request body is compressed: send it without"
        )
    if form:
        return
    content_type = headers.get("content-type", "").strip(" \t")
    if content_type and not _JSON_TYPE.fullmatch(content_type):
        raise RequestError(
            Reason.UNPARSEABLE_BODY,
            "the request body is not JSON in UTF-8 by its content-type: send 'application/json'",
        )


def read_string(document: dict[str, Any], key: str) -> str:
    """A required, non-empty string of at most 256 characters."""
    value = document.get(key)
    if not isinstance(value, str) or not value or len(value) > 256:
        raise RequestError(
            Reason.UNPARSEABLE_BODY, f"'{key}' must be a string of 1 to 256 characters"
        )
    return value


def read_text(document: dict[str, Any], key: str) -> str:
    """An optional string of any length; absent and null are empty."""
    value = document.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(Reason.UNPARSEABLE_BODY, f"'{key}' must be a string")
    return value or ""


def read_flag(document: dict[str, Any], key: str) -> bool:
    """An optional boolean; absent and null are False."""
    value = document.get(key)
    if value is not None and not isinstance(value, bool):
        raise RequestError(Reason.UNPARSEABLE_BODY, f"'{key}' must be true or false")
    return bool(value)


def read_count(document: dict[str, Any], key: str, maximum: int) -> int | None:
    """An optional whole number from 1 to `maximum`; absent and null are None."""
    value = document.get(key)
    if value is None:
        return None
    # bool is an int in Python and 1.0 equals 1: neither is a count that every reader agrees on.
    if type(value) is not int or not 1 <= value <= maximum:
        raise RequestError(
            Reason.UNPARSEABLE_BODY, f"'{key}' must be a whole number from 1 to {maximum}"
        )
    return value


def hinted_count(document: Any, *path: str) -> int:
    """A whole number down a path of keys, else 0: no bound may lean on it."""
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document if type(document) is int and document > 0 else 0


def beyond_cap(thinking_tokens: int, cap: int | None) -> int:
    """What may be thought beside an answer's cap: nothing, unless all of the cap is for thinking.

    A cap bounds the answer with its thoughts. Where the client lets the model think more than that,
    either the provider refuses the call or its cap is of the rest only: of Anthropic's models that
    think between calls of tools, "the token limit becomes your entire context window", says
    https://docs.claude.com/en/docs/build-with-claude/extended-thinking.
    """
    return 0 if cap is None or thinking_tokens < cap else thinking_tokens


def read_list(document: dict[str, Any], key: str) -> list[Any]:
    """An optional array; absent and null are empty."""
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError(Reason.UNPARSEABLE_BODY, f"'{key}' must be an array")
    return value
