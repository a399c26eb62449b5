"""The most output tokens a model can answer with, where that is less than its context window.

Without an entry the context window bounds the output, and without that `TOKENS_MAX_UNKNOWN`: a
missing fact makes an estimate larger, never smaller. The figures are "max output tokens" of the
providers' model pages: https://platform.openai.com/docs/models and
https://docs.claude.com/en/docs/about-claude/models/overview.
"""

from fnmatch import fnmatchcase

TOKENS_MAX_UNKNOWN = 2_000_000
"""Above every context window that is sold today."""

# The first pattern that matches counts, so narrower ones stand first.
_OUTPUT_TOKENS_MAX = (
    ("gpt-3.5-turbo*", 4_096),
    ("gpt-4o-mini*", 16_384),
    ("gpt-4o-2024-05-13*", 4_096),
    ("gpt-4o*", 16_384),
    ("gpt-4.1*", 32_768),
    ("gpt-4-turbo*", 4_096),
    ("gpt-5-chat*", 16_384),
    ("gpt-5*", 128_000),
    ("o1*", 100_000),
    ("o3*", 100_000),
    ("o4*", 100_000),
    ("claude-3-haiku*", 4_096),
    ("claude-3-5-haiku*", 8_192),
    ("claude-haiku-4-5*", 64_000),
    ("claude-sonnet-4-5*", 64_000),
    ("claude-opus-4-5*", 64_000),
)


def output_tokens_max(model: str, context_window: int | None) -> int:
    """An upper bound of one answer's tokens."""
    for pattern, tokens in _OUTPUT_TOKENS_MAX:
        if fnmatchcase(model.lower(), pattern):
            return tokens
    return context_window or TOKENS_MAX_UNKNOWN
