"""Headers of the client that decide who is billed, or at which price.

They pass by allow-list only. Whom a call is billed to is the operator's to say, so what the client
says about that is taken off (by Envoy). What changes the price changes the answer too, so a call
that asks for it is refused: without the header it would be another call.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from extauthz.providers.base import RequestError
from extauthz.reasons import Reason

BILLED_TO = ("openai-organization", "openai-project", "x-goog-user-project")
"""Taken off on the way to the provider, unless the config allows the value."""

# The betas of https://docs.claude.com/en/api/beta-headers that leave the price alone, or whose
# price stands in the body and is reckoned from there (caching, `speed`).
KNOWN_BETAS = (
    "cache-diagnosis-2026-04-07", "claude-code-20250219", "computer-use-2024-10-22",
    "computer-use-2025-01-24", "computer-use-2025-11-24", "context-management-2025-06-27",
    "extended-cache-ttl-2025-04-11", "fast-mode-2026-02-01", "files-api-2025-04-14",
    "fine-grained-tool-streaming-2025-05-14", "interleaved-thinking-2025-05-14",
    "model-context-window-exceeded-2025-08-26", "output-128k-2025-02-19", "pdfs-2024-09-25",
    "prompt-caching-2024-07-31", "structured-outputs-2025-11-13", "token-counting-2024-11-01",
    "token-efficient-tools-2025-02-19",
)  # fmt: skip

_PRICED: dict[str, tuple[str, ...]] = {
    "anthropic-beta": KNOWN_BETAS,
    "openai-beta": (),
    # To another deployment: https://learn.microsoft.com/azure/foundry/openai/how-to/spillover-traffic-management
    "x-ms-spillover-deployment": (),
    "x-amzn-bedrock-guardrailidentifier": (),
    "x-amzn-bedrock-performanceconfig-latency": ("standard",),
    "x-amzn-bedrock-service-tier": ("default",),
    "x-vertex-ai-llm-request-type": ("shared",),
    "x-vertex-ai-llm-shared-request-type": ("standard",),
}
"""With the values that pass without being allowed by the config."""

ALLOWABLE = (*BILLED_TO, *_PRICED)
"""All that a config can allow."""


def refuse_headers(headers: Mapping[str, str], allowed: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a call with a header value that nobody has allowed; `allowed` are globs by header.

    Raises:
        RequestError: `unmetered_endpoint`.
    """
    for name in ALLOWABLE:
        given = headers.get(name)
        if given is None or (name in BILLED_TO and name not in allowed):
            continue
        passes = (*_PRICED.get(name, ()), *allowed.get(name, ()))
        values = [value.strip() for value in given.split(",")]
        if not all(any(fnmatchcase(value, glob) for glob in passes) for value in values if value):
            raise RequestError(
                Reason.UNMETERED_ENDPOINT,
                f"the header '{name}' has a value that can change what a call costs, or who pays: "
                "send the call without it, or have it allowed under providers.NAME.allow_headers",
            )
