r"""The most tokens that the text of a request is.

A tokenizer of bytes has no token below a byte. But the model does not read the body: servers write
what stands in it out again, by a template of the model's, and only then is it split into tokens.

- Templates and preambles (of tools, of a schema) are text beside it.
- Tools and their calls are JSON written anew: with a blank behind each comma and colon by Python's
  `json.dumps` (`mistral-common`), with a line and its indent for each member by `tojson(indent=4)`
  (the template of Llama 3.1), with `\u003c` for `<` and its like by Go's `json.Marshal` (Ollama's
  `api.Tools`) and by minijinja's `tojson` (Hugging Face's TGI).
- Some tokenizers normalize first, which makes some letters longer: to NFC those of Qwen and Cohere,
  to NFKC the one that Anthropic has published (`@anthropic-ai/tokenizer`).
"""

import re
from typing import Any
from unicodedata import normalize

_BESIDE_TOKENS = 1024
"""Templates and preambles; the longest that is documented is Anthropic's for tools, 735."""

_STRUCTURE = b",:[]{}"
_TOKENS_EACH = 2
"""What JSON's own marks are more, written anew: a line's end or a blank, and the indent."""

_LEVELS_A_TOKEN = 16
"""A run of 64 blanks is a token of Llama 3's vocabulary, and four of them are a level."""

_ESCAPED_IN_HTML = b"<>&'"
_ESCAPE_BYTES = 5
"""What `\\u0026` is longer by than `&`."""
_TOOLS = (b"tool", b"function", b"\\u")
"""What a body has in it that has tools or calls of them, if only in an escaped spelling."""

_GROWING = (
    "\xa8\xaf\xb4\xb8\xbc-\xbe\u013f\u0140\u0149\u01c4-\u01c6\u02d8-\u02dd\u0344\u037a\u0384\u0385"
    "\u0587\u0675-\u0678\u0958-\u095f\u09dc-\u09df\u0a33-\u0a5e\u0b5c\u0b5d\u0e33\u0eb3\u0edc\u0edd"
    "\u0f43-\u0fb9\u1fc1-\u1fee\u2033-\u2057\u2150-\u215f\u2167\u2177\u2189\u222c-\u2230"
    "\u247d-\u2487\u2a0c\u2adc\u309b-\u309f\u30ff\u3200-\u33fe\ufa6c-\ufad9\ufb13-\ufb4f"
    "\ufbdd-\ufdfc\ufe71-\ufe7f\ufef5-\ufefc\U0001d15e-\U0001d1c0\U0001f12a\U0001f200-\U0001f248"
)
"""Every letter that is longer in UTF-8 in NFC or NFKC, and their neighbours."""
_GROWS = re.compile(f"[{_GROWING}]")

_GROW_ESCAPED = tuple(
    rb"\u" + first
    for first in (b"0f7", b"203", b"205", b"222", b"223", b"2a0", b"321", b"33", b"fdf")
)
"""Those that are longer even than the six bytes of their escape, and their neighbours."""
_GROW_ESCAPED_BYTES = 27
"""U+FDFA, a phrase of 18 letters, is 33 bytes."""


def text_tokens_max(body: bytes) -> int:
    """An upper bound of the input tokens of a body, valid UTF-8, that is text only."""
    tokens = len(body) + _BESIDE_TOKENS
    tokens += _TOKENS_EACH * _count(body, _STRUCTURE)
    if any(word in body for word in _TOOLS):
        tokens += _ESCAPE_BYTES * _count(body, _ESCAPED_IN_HTML)
    if not body.isascii():
        tokens += _growth_bytes(body.decode())
    if b"\\u" in body:
        escapes = body.lower()
        tokens += _GROW_ESCAPED_BYTES * sum(map(escapes.count, _GROW_ESCAPED))
    return tokens


def indent_tokens_max(body: bytes, tools: Any) -> int:
    """What the indents of tools are more, written in lines, where they are nested deeply."""
    return (_levels(tools) // _LEVELS_A_TOKEN) * _count(body, _STRUCTURE) if tools else 0


def _count(body: bytes, marks: bytes) -> int:
    return len(body) - len(body.translate(None, marks))


class _Growth(dict[str, int]):
    """By how many bytes each letter grows, of those that were seen."""

    def __missing__(self, letter: str) -> int:
        longest = max(len(normalize(form, letter).encode()) for form in ("NFC", "NFKC"))
        self[letter] = growth = max(0, longest - len(letter.encode()))
        return growth


_GROWTH = _Growth()
_LETTERS_AT_ONCE = 1_000_000
"""A text may be of nothing but letters that grow, and a list of them takes much memory."""


def _growth_bytes(text: str) -> int:
    """By how many bytes a text may grow."""
    pieces = range(0, len(text), _LETTERS_AT_ONCE)
    found = (_GROWS.findall(text, start, start + _LETTERS_AT_ONCE) for start in pieces)
    return sum(sum(map(_GROWTH.__getitem__, letters)) for letters in found)


def _levels(value: Any) -> int:
    """How deeply objects and arrays are nested."""
    levels, layer = 0, [value]
    while layer:
        levels += 1
        layer = [
            inner
            for holder in layer
            for inner in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(inner, (dict, list))
        ]
    return levels
