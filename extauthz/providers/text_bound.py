"""The most tokens that the text of a request is.

A tokenizer of bytes has no token below a byte. But the model does not read the body: servers write
what stands in it out again, by a template of the model's, and only then is it split into tokens.

- Templates and preambles (of tools, of a schema) are text beside it.
- Tools and their calls are JSON written anew: with a blank behind each comma and colon by Python's
  `json.dumps` (`mistral-common`), with a line and its indent for each member by `tojson(indent=4)`
  (the template of Llama 3.1).
- Some tokenizers (Qwen's, Cohere's) normalize to NFC first, which makes some letters longer.
"""

import re

_BESIDE_TOKENS = 1024
"""Templates and preambles; the longest that is documented is Anthropic's for tools, 735."""

_STRUCTURE = b",:[]{}"
_TOKENS_EACH = 2
"""What JSON's own marks are more, written anew: a line's end or a blank, and the indent."""


_GROWS = re.compile(
    "[\u0344\u0958-\u095f\u09dc-\u09df\u0a33-\u0a5e\u0b5c\u0b5d\u0f43-\u0fb9\u2adc\ufa6c-\ufad9\ufb1d-\ufb4e"
    "\U0001d15e-\U0001d1c0]"
)
"""Every letter whose NFC is longer in UTF-8, and their neighbours; U+1D160 grows most, by 8."""

_GROWS_BYTES = 8


def text_tokens_max(body: bytes) -> int:
    """An upper bound of the input tokens of a body, valid UTF-8, that is text only."""
    tokens = len(body) + _BESIDE_TOKENS
    tokens += _TOKENS_EACH * (len(body) - len(body.translate(None, _STRUCTURE)))
    if not body.isascii():
        tokens += _GROWS_BYTES * sum(1 for _ in _GROWS.finditer(body.decode()))
    return tokens
