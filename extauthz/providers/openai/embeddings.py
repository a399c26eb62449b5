"""`embeddings`: billed for their input only, https://platform.openai.com/docs/api-reference/embeddings."""

from extauthz.providers.base import CapturedResponse, Request, RequestFacts
from extauthz.providers.openai.dialect import Dialect, refuse_unknown
from extauthz.providers.openai.usage import told_usage
from extauthz.providers.strict_json import parse_object, read_string
from extauthz.providers.text_bound import text_tokens_max
from extauthz.usage import UsageReport

_PARAMETERS = frozenset(("dimensions", "encoding_format", "input", "model", "user"))


def read_request(request: Request, dialect: Dialect) -> RequestFacts:
    """The facts: a text is no more tokens than bytes, a token id takes two bytes at least."""
    document = parse_object(request.body)
    model = request.path_model or read_string(document, "model")
    dialect.refuse_unbounded(model)
    refuse_unknown(document, _PARAMETERS)
    return RequestFacts(
        model=model,
        stream=False,
        input_tokens_max=text_tokens_max(request.body),
        output_tokens_cap=0,
        bills=("input_mtok",),
    )


def read_usage(captured: CapturedResponse, dialect: Dialect) -> UsageReport:
    """`usage.prompt_tokens`; every server that embeds has OpenAI's shape."""
    return told_usage(
        captured,
        ("openai", "embeddings"),
        exact=captured.complete and not captured.error,
        tells_cost=dialect.tells_cost,
    )
