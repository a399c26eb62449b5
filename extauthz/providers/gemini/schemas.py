"""References in the schemas of a call: Google writes what they stand for in their place.

"Cyclic references are unrolled to a limited degree", says `responseJsonSchema` of
https://ai.google.dev/api/generate-content, and a schema "counts towards the input token limit"
(https://ai.google.dev/gemini-api/docs/structured-output). So a few bytes can stand for many.
"""

import json
from collections.abc import Iterator
from typing import Any

_REFERENCES, _DEFINITIONS = ("$ref", "ref"), ("$defs", "defs", "definitions")
_NESTED_MAX = 64
_BYTES_MAX = 30_000_000
_TOKENS_A_BYTE = 3
"""A byte of text, and two more where it is a mark of JSON's (see `text_bound`)."""


def reference_tokens_max(body: bytes, *schemas: Any) -> int | None:
    """What all references stand for, in tokens; None: one is cyclic, or to something not known."""
    if b"ref" not in body and b"\\u" not in body:
        return 0
    defined: dict[str, Any] = {}
    for holder in _objects(schemas):
        for key in _DEFINITIONS:
            found = holder.get(key)
            for name, definition in found.items() if isinstance(found, dict) else ():
                if defined.setdefault(name, definition) != definition:
                    return None
    sizes: dict[str, int | None] = {}
    total = _size(schemas, defined, sizes, 0)
    return None if total is None else total * _TOKENS_A_BYTE


def _size(
    value: Any, defined: dict[str, Any], sizes: dict[str, int | None], nested: int
) -> int | None:
    """The bytes of all that is referred to in a value; `sizes` has those of what was seen."""
    total = 0
    for holder in _objects(value):
        for key in _REFERENCES:
            reference = holder.get(key)
            if not isinstance(reference, str):
                continue
            name = reference.rpartition("/")[2]
            if name not in sizes:
                sizes[name] = None  # as long as it is looked into: it must not refer to itself
                if name in defined and nested < _NESTED_MAX:
                    within = _size(defined[name], defined, sizes, nested + 1)
                    if within is not None:
                        sizes[name] = len(json.dumps(defined[name])) + within
            size = sizes[name]
            if size is None or total + size > _BYTES_MAX:
                return None
            total += size
    return total


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within a value, and itself."""
    todo = [value]
    while todo:
        holder = todo.pop()
        if isinstance(holder, dict):
            yield holder
            todo.extend(holder.values())
        elif isinstance(holder, (list, tuple)):
            todo.extend(holder)
