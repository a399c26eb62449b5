"""The most output tokens a model can answer with, where that is less than its context window.

Without an entry the context window bounds the output, and without that `TOKENS_MAX_UNKNOWN`: a
missing fact makes an estimate larger, never smaller. The figures are "max output tokens" of the
providers' model pages: https://platform.openai.com/docs/models and
https://docs.claude.com/en/docs/about-claude/models/overview. docs/estimates.md has them all.
"""

from fnmatch import fnmatchcase

from genai_prices import types

TOKENS_MAX_UNKNOWN = 2_000_000
"""Above every context window that is sold today."""

# The first pattern that matches counts, so narrower ones stand first.
_OUTPUT_TOKENS_MAX: tuple[tuple[str, int | None], ...] = (
    ("gpt-3.5-turbo-16k*", None),  # older than the limit: bounded by its context window only
    ("gpt-3.5-turbo*", 4_096),
    ("gpt-4o-mini-transcribe*", 2_000),
    ("gpt-4o-transcribe*", 2_000),
    ("gpt-4o-mini*", 16_384),
    ("gpt-4o-2024-05-13*", 4_096),
    ("gpt-4o:extended*", None),
    ("gpt-4o-64k*", None),
    ("gpt-4o*", 16_384),
    ("gpt-4.1*", 32_768),
    ("gpt-4-turbo*", 4_096),
    ("gpt-5-chat*", 16_384),
    ("gpt-5-pro*", None),  # 272,000 by its own page, 128,000 by others
    ("gpt-5*", 128_000),
    # A picture of the largest size and the best quality, and three partial ones of 100 each:
    # https://platform.openai.com/docs/guides/image-generation#cost-and-latency
    ("gpt-image-1", 6_540),
    ("gpt-image-1-mini*", 6_540),
    ("o1*", 100_000),
    ("o3*", 100_000),
    ("o4*", 100_000),
    # https://ai.google.dev/gemini-api/docs/models
    ("gemini-1.5*", 8_192),
    ("gemini-2.0-flash-thinking*", None),
    ("gemini-2.0*", 8_192),
    ("gemini-2.5*", 65_536),
    ("gemini-3-*", 65_536),
    ("gemini-3.1-pro*", 65_536),
    ("claude-3-haiku*", 4_096),
    ("claude-3-5-haiku*", 8_192),
    ("claude-haiku-4-5*", 64_000),
    ("claude-sonnet-4-5*", 64_000),
    ("claude-opus-4-5*", 64_000),
)


# "For reasoning models and models that support function calls, the limit is only applied to the
# main content and not to the reasoning content or function calls", says `max_tokens` of
# https://github.com/xai-org/xai-proto/blob/main/proto/xai/api/v1/chat.proto. Others sell them too.
_PASS_OVER_CAPS = ("*grok*",)


# The first pattern that matches counts. docs/estimates.md says how they come about, from
# https://platform.openai.com/docs/guides/images-vision#calculating-costs and
# https://docs.claude.com/en/docs/build-with-claude/vision.
_IMAGE_TOKENS_MAX: tuple[tuple[str, int], ...] = (
    # 65, 129 for each of 8 tiles at most, and 6,240 for high fidelity.
    ("gpt-image-1", 7_400),
    ("gpt-image-1-mini*", 7_400),
    ("gpt-4o-mini*", 50_000),
    ("gpt-4.1-mini*", 50_000),
    ("gpt-4.1-nano*", 50_000),
    ("gpt-4o*", 1_500),
    ("gpt-4.1*", 1_500),
    ("o1", 1_500),
    ("o1-2024*", 1_500),
    ("o1-pro*", 1_500),
    ("o3", 1_500),
    ("o3-2025*", 1_500),
    ("*claude-3-*", 6_000),
    ("*claude-haiku-4*", 6_000),
    ("*claude-sonnet-4*", 6_000),
    ("*claude-opus-4*", 6_000),
)


def image_tokens_max(model: str) -> int | None:
    """The most input tokens that one picture takes; None: not known."""
    return next(
        (most for pattern, most in _IMAGE_TOKENS_MAX if fnmatchcase(model.lower(), pattern)), None
    )


def caps_bind(*names: str) -> bool:
    """Whether an output cap bounds all that a model, by any of its names, bills as output."""
    return not any(
        fnmatchcase(name.lower(), pattern) for name in names for pattern in _PASS_OVER_CAPS
    )


def is_output_documented(model: str) -> bool:
    """Whether the most that a model answers with is known, and so the largest cap it takes."""
    return any(
        tokens is not None
        for pattern, tokens in _OUTPUT_TOKENS_MAX
        if fnmatchcase(model.lower(), pattern)
    )


def output_tokens_max(model: str, context_window: int | None) -> int:
    """An upper bound of one answer's tokens."""
    for pattern, tokens in _OUTPUT_TOKENS_MAX:
        if fnmatchcase(model.lower(), pattern):
            return tokens or context_window or TOKENS_MAX_UNKNOWN
    return context_window or TOKENS_MAX_UNKNOWN


def context_window_max(info: types.ModelInfo | None) -> int | None:
    """An upper bound of a model's context window by the public list; None: not known.

    The list rounds (1,000,000 for 1,047,576, 32,000 for 32,768), so a twentieth is added. Where it
    has a price for prompts longer than the window, there is a larger window (a beta header opens
    it) that it does not know.
    """
    if info is None or info.context_window is None:
        return None
    entries = info.prices if isinstance(info.prices, list) else [info]
    tiers = [
        tier.start
        for entry in entries
        for price in vars(entry.prices).values()
        if isinstance(price, types.TieredPrices)
        for tier in price.tiers
    ]
    if tiers and max(tiers) >= info.context_window:
        return None
    return info.context_window + info.context_window // 20
