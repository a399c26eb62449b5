"""Providers and servers that speak OpenAI's API: in what each differs, as one table.

Every one serves `chat/completions`, most under `/v1`; what stands before that in a provider's own
path belongs to the upstream's URL (`https://api.groq.com/openai`).
"""

import re
from dataclasses import dataclass

from extauthz.providers.base import UNBILLED_STATUS, Adapter
from extauthz.providers.openai import routing
from extauthz.providers.openai.dialect import HOSTED_PARTS, SEARCHES, Dialect
from extauthz.providers.openai.endpoints import billed_endpoint, models
from extauthz.providers.openai.refusals import refusal_body

_NOTHING = re.compile(r"(?!)")
_SAMPLING = frozenset((
    "min_p", "min_tokens", "repetition_penalty", "top_k", "reasoning", "thinking",
    "chat_template_kwargs",
))  # fmt: skip
"""How tokens are chosen; not how many are paid for."""

_LOCAL = _SAMPLING | {
    "add_generation_prompt", "cache_prompt", "dynatemp_range", "grammar", "guided_choice",
    "guided_grammar", "guided_json", "guided_regex", "id_slot", "ignore_eos", "json_schema",
    "min_keep", "mirostat", "mirostat_eta", "mirostat_tau", "repeat_last_n", "repeat_penalty",
    "samplers", "skip_special_tokens", "stop_token_ids", "structured_outputs", "think",
    "typical_p",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Server:
    """One row.

    Attributes:
        dialect: see there.
        endpoints: what it serves beside the list of models.
        prefix: of its paths, a regular expression.
        unbilled_status: statuses of its own that prove that nothing was billed.
    """

    dialect: Dialect
    endpoints: tuple[str, ...] = ("chat",)
    prefix: str = "/v1"
    unbilled_status: frozenset[int] = UNBILLED_STATUS


_NO_BALANCE = UNBILLED_STATUS | {402}
_OLDER_CAP = ("max_tokens",)
_OLDER_CAP_FIRST = ("max_tokens", "max_completion_tokens")
_TABLE = {
    # Rejects what it does not know, `stream_options` too (422); ends each stream with the usage.
    # https://docs.mistral.ai/api/
    "mistral": _Server(
        Dialect(
            price_provider="mistral",
            parts=HOSTED_PARTS,
            usage_shape=("mistral", "default"),
            cap_fields=_OLDER_CAP,
            asks_for_usage=False,
            parameters=frozenset(("prompt_mode", "random_seed", "safe_prompt")),
        ),
        ("chat", "embeddings"),
    ),
    # The compound systems search and run code. https://console.groq.com/docs/api-reference
    "groq": _Server(
        Dialect(
            price_provider="groq",
            parts=HOSTED_PARTS,
            usage_shape=("groq", "default"),
            parameters=frozenset((
                "disable_tool_validation", "documents", "include_reasoning", "reasoning_format",
            )),
            tiers=frozenset(("auto", "default", "on_demand", "flex", "performance")),
            unbounded_models=re.compile(f"compound|{SEARCHES}"),
        ),
        # No capacity left for `flex`: https://console.groq.com/docs/flex-processing
        unbilled_status=UNBILLED_STATUS | {498},
    ),
    # https://api-docs.deepseek.com/api/create-chat-completion, .../quick_start/error_codes
    "deepseek": _Server(
        Dialect(
            price_provider="deepseek",
            parts=HOSTED_PARTS,
            usage_shape=("deepseek", "chat"),
            cap_fields=_OLDER_CAP,
            parameters=frozenset(("thinking",)),
        ),
        prefix="(/v1)?",
        unbilled_status=_NO_BALANCE,
    ),
    # `deferred` answers later, `search_parameters` searches. https://docs.x.ai/docs/api-reference
    # What violates its guidelines is a 403, and "we will still charge for the generation":
    # https://docs.x.ai/developers/pricing#usage-guidelines-violation-fee
    "xai": _Server(
        Dialect(
            price_provider="x-ai",
            parts=HOSTED_PARTS,
            usage_shape=("x-ai", "chat"),
            tells_cost=True,
            unbounded_models=re.compile(f"deep-?search|multi-agent|{SEARCHES}"),
        ),
        unbilled_status=UNBILLED_STATUS - {403},
    ),
    # `safety_model` is billed beside the model. https://docs.together.ai/reference/chat-completions-1
    "together": _Server(
        Dialect(
            price_provider="together",
            parts=HOSTED_PARTS,
            cap_fields=_OLDER_CAP,
            parameters=_SAMPLING | {"context_length_exceeded_behavior"},
            completion_tokens=None,
        ),
        ("chat", "completions", "embeddings"),
    ),
    # https://docs.fireworks.ai/api-reference/post-chatcompletions
    "fireworks": _Server(
        Dialect(
            price_provider="fireworks",
            parts=HOSTED_PARTS,
            usage_shape=("fireworks", "chat"),
            cap_fields=_OLDER_CAP_FIRST,
            parameters=_SAMPLING
            | {"context_length_exceeded_behavior", "prompt_truncate_len", "raw_output"},
            completion_tokens=None,
        ),
        ("chat", "completions", "embeddings"),
    ),
    # A router: which provider of a model answers, and of which model of a list, it decides itself,
    # within a highest price; what it charges is in `usage.cost`.
    # https://openrouter.ai/docs/api-reference/overview,
    # https://openrouter.ai/docs/features/presets
    "openrouter": _Server(
        Dialect(
            price_provider="openrouter",
            parts=routing.PARTS,
            usage_shape=("openrouter", "chat"),
            cap_fields=_OLDER_CAP_FIRST,
            parameters=_SAMPLING | {"include_reasoning", "top_a", "usage"} | routing.PARAMETERS,
            unbounded_models=routing.UNBOUNDED_MODELS,
            tells_cost=True,
            routes=True,
        ),
        unbilled_status=_NO_BALANCE,  # https://openrouter.ai/docs/api-reference/errors
    ),
    # Every call of a `sonar` searches, for a price by the call; deep research searches as often as
    # it likes. https://docs.perplexity.ai/api-reference/chat-completions-post
    "perplexity": _Server(
        Dialect(
            price_provider="perplexity",
            parts=HOSTED_PARTS,
            usage_shape=("perplexity", "default"),
            cap_fields=_OLDER_CAP,
            asks_for_usage=False,
            parameters=frozenset((
                "disable_search", "last_updated_after_filter", "last_updated_before_filter",
                "return_images", "return_related_questions", "search_after_date_filter",
                "search_before_date_filter", "search_domain_filter", "search_mode",
                "search_recency_filter", "top_k", "web_search_options",
            )),
            unbounded_models=re.compile(f"pro-search|perplexity/sonar|{SEARCHES}"),
            tells_cost=True,
        ),
        prefix="(/v1)?",
    ),
    # https://inference-docs.cerebras.ai/api-reference/chat-completions
    "cerebras": _Server(
        Dialect(
            price_provider="cerebras",
            parts=HOSTED_PARTS,
            usage_shape=("cerebras", "chat"),
            parameters=frozenset(("clear_thinking", "disable_reasoning")),
        )
    ),
    # https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
    "vllm": _Server(
        Dialect(parameters=_LOCAL, unbounded_models=_NOTHING), ("chat", "completions", "embeddings")
    ),
    # Passes over `max_completion_tokens`. https://docs.ollama.com/api/openai-compatibility
    "ollama": _Server(
        Dialect(
            cap_fields=_OLDER_CAP,
            parameters=_LOCAL,
            unbounded_models=_NOTHING,
            completion_tokens=None,
        ),
        ("chat", "completions", "embeddings"),
    ),
    # https://github.com/ggml-org/llama.cpp/tree/master/tools/server
    "llamacpp": _Server(
        Dialect(
            cap_fields=_OLDER_CAP,
            parameters=_LOCAL,
            unbounded_models=_NOTHING,
            completion_tokens=None,
        ),
        ("chat", "completions", "embeddings"),
        prefix="(/v1)?",
    ),
}  # fmt: skip

_MODEL_PATH = r"[A-Za-z0-9][A-Za-z0-9._:@-]*(/[A-Za-z0-9][A-Za-z0-9._:@-]*){0,4}"
"""A model's name has slashes with some of them."""


def _adapter(server: _Server) -> Adapter:
    return Adapter(
        price_provider=server.dialect.price_provider,
        endpoints=(
            *(billed_endpoint(name, server.prefix, server.dialect) for name in server.endpoints),
            models(server.prefix, name=_MODEL_PATH),
        ),
        refusal_body=refusal_body,
        unbilled_status=server.unbilled_status,
    )


COMPATIBLE = {name: _adapter(server) for name, server in _TABLE.items()}
