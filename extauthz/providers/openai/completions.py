"""`completions`: the older API of text in, text out.

From https://platform.openai.com/docs/api-reference/completions: each of several prompts is answered
`n` times, with 16 tokens where no cap is named; of `best_of` answers all are billed and `n` are
returned; a prompt is text or token ids.
"""

from typing import Any

from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.openai import chat
from extauthz.providers.openai.dialect import Dialect, refuse_unknown
from extauthz.providers.openai.usage import TOKENS_MAX
from extauthz.providers.strict_json import parse_object, read_count, read_flag, read_string
from extauthz.providers.text_bound import text_tokens_max
from extauthz.reasons import Reason
from extauthz.usage import UsageReport

CAP_FIELDS = ("max_tokens",)
_ANSWERS_MAX = 128
_PROMPTS_MAX = 4096
_PARAMETERS = frozenset((
    "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "model", "n",
    "presence_penalty", "prompt", "seed", "stop", "stream", "stream_options", "suffix",
    "temperature", "top_p", "user",
))  # fmt: skip


def read_request(request: Request, dialect: Dialect) -> RequestFacts:
    """The facts of a completion."""
    body = request.body
    document = parse_object(body)
    model = request.path_model or read_string(document, "model")
    dialect.refuse_unbounded(model)
    refuse_unknown(document, _PARAMETERS | dialect.parameters)
    stream = read_flag(document, "stream")
    if stream:
        dialect.refuse_stream()
    # (a default of the config is not written over the server's own: a cap is never raised)
    cap = read_count(document, CAP_FIELDS[0], TOKENS_MAX) or dialect.completion_tokens
    each = max(read_count(document, key, _ANSWERS_MAX) or 1 for key in ("n", "best_of"))
    input_tokens = text_tokens_max(body)
    asks = tuple(chat.usage_edits(document, body)) if stream and dialect.asks_for_usage else ()
    return RequestFacts(
        model=model,
        stream=stream,
        input_tokens_max=input_tokens,
        output_tokens_cap=cap,
        answers=each * _count_prompts(document),
        # What is echoed may be counted again.
        extra_output_tokens=input_tokens * each if read_flag(document, "echo") else 0,
        cache_writes=True,
        edits=asks,
        unasked_usage=bool(asks),
        cap_slot=chat.slot_of_cap(document, body, CAP_FIELDS[0]),
    )


def read_usage(captured: CapturedResponse, dialect: Dialect) -> UsageReport:
    """As of a chat."""
    return chat.read_usage(captured, dialect)


def _count_prompts(document: dict[str, Any]) -> int:
    """How many prompts there are: a list of token ids is one, a list of texts or lists many."""
    prompt = document.get("prompt")
    if prompt is None or isinstance(prompt, str):
        return 1
    if not isinstance(prompt, list) or not len(prompt) >= 1:
        raise RequestError(Reason.UNPARSEABLE_BODY, "'prompt' must be a text or an array")
    if all(type(token) is int for token in prompt):
        return 1
    if len(prompt) > _PROMPTS_MAX:
        raise RequestError(
            Reason.UNPARSEABLE_BODY, f"'prompt' holds more than {_PROMPTS_MAX} prompts"
        )
    return len(prompt)
