"""Where in the bytes of a request body a root-level member stands, so that it can be edited.

A body is never written out again: key order, spacing, escapes and number texts carry meaning for
models and signatures. An edit changes the bytes it must and no others.
"""

import json
import re
from typing import Any, NamedTuple

from extauthz.providers.base import CapSlot, Edit

# A string as a whole, or one structural character. Possessive (`*+`): no backtracking, so time is
# linear whatever the body holds.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],:]', re.DOTALL)
_BLANK = b" \t\r\n"
_ESCAPED_LETTERS = (b"\\u004", b"\\u005", b"\\u006", b"\\u007")
"""How any escape of a letter or of `_` begins."""


class Span(NamedTuple):
    """Bytes `start` (inclusive) to `end` (exclusive) of a value."""

    start: int
    end: int


def root_start(body: bytes) -> int:
    """The offset just behind the opening brace of the root object."""
    return body.index(b"{") + 1


def insert_member(body: bytes, member: str) -> Edit:
    """Insert a member, such as `"n":1`, as the root object's first (which must not be empty)."""
    return Edit(root_start(body), 0, member + ",")


def cap_slot(body: bytes, key: str, *, stands: bool) -> CapSlot:
    """Where a cap named `key` goes: over what stands there (or `null`), else at the very start."""
    span = find_rooted(body, (key,)) if stands else None
    if span is not None:
        return CapSlot(span.start, span.end - span.start, "", "")
    return CapSlot(root_start(body), 0, f'"{key}":', ",")


def nested_cap_slot(document: dict[str, Any], body: bytes, outer: str, inner: str) -> CapSlot:
    """Where the cap `outer.inner` goes: over what stands there (or `null`), else in front.

    `outer` and `inner` are spelled as the body spells them, where it has them.
    """
    if outer not in document:
        end = "}," if document else "}"
        return CapSlot(root_start(body), 0, f'"{outer}":{{"{inner}":', end)
    span = find_rooted(body, (outer,))
    assert span is not None
    holder = document[outer]
    if holder is None:
        return CapSlot(span.start, span.end - span.start, f'{{"{inner}":', "}")
    if inner in holder:
        named = find_rooted(body, (outer, inner))
        assert named is not None
        return CapSlot(named.start, named.end - named.start, "", "")
    return CapSlot(span.start + 1, 0, f'"{inner}":', "," if holder else "")


def find_rooted(body: bytes, path: tuple[str, ...]) -> Span | None:
    """As `find_member`, where the document has the first key, of letters and `_`, at its root.

    A long body is not gone through where that key's text stands in it once only: then it is there.
    """
    text = f'"{path[0]}"'.encode()
    at = body.find(text)
    if at < 0 or body.find(text, at + 1) >= 0 or may_spell_otherwise(body):
        return find_member(body, path)
    return _scan(body, path, at, 1)


def may_spell_otherwise(body: bytes) -> bool:
    """Whether a letter or a `_` may stand in the body in an escaped spelling."""
    return b"\\u00" in body and any(mark in body for mark in _ESCAPED_LETTERS)


def find_member(body: bytes, path: tuple[str, ...]) -> Span | None:
    """Where the value of a member stands, down a path of object keys from the root.

    The body must be valid JSON without duplicate keys (see `strict_json`).
    """
    return _scan(body, path, 0, 0)


def _scan(  # noqa: C901, PLR0912 - one pass over the tokens, read best as a whole
    body: bytes, path: tuple[str, ...], at: int, depth: int
) -> Span | None:
    """From `at` on, where `depth` objects and arrays are open."""
    matched = 0  # leading keys of `path` whose objects are open
    key: bytes | None = None  # the last string at the level that matters
    start = -1
    for token in _TOKEN.finditer(body, at):
        first = body[token.start()]
        if first == 0x22:  # '"'
            if depth == matched + 1 and start < 0:
                key = token.group()
        elif first == 0x3A:  # ':'
            if depth == matched + 1 and start < 0 and _is(key, path[matched]):
                if matched + 1 == len(path):
                    start = token.end()
                elif body[token.end() :].lstrip(_BLANK)[:1] == b"{":
                    matched += 1
                else:
                    return None
        elif first in b"{[":
            depth += 1
        else:  # ',' or a closing bracket: ends a value of the level that matters
            closes = first in b"}]"
            if start >= 0 and depth == matched + 1:
                return _trim(body, start, token.start())
            if closes:
                depth -= 1
                if depth <= matched:
                    return None  # the object that had to hold the key has ended without it
    return None


def _is(key: bytes | None, wanted: str) -> bool:
    if key is None or b"\\" in key:  # an escaped letter is the same letter
        return key is not None and json.loads(key) == wanted
    return key[1:-1] == wanted.encode()


def _trim(body: bytes, start: int, end: int) -> Span:
    while body[start] in _BLANK:
        start += 1
    while body[end - 1] in _BLANK:
        end -= 1
    return Span(start, end)
