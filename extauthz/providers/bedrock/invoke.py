"""`InvokeModel` and `InvokeModelWithResponseStream`, with a body of the model's own shape.

Only that of Anthropic's models is known, from
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-anthropic-claude-messages.html;
all others can be had by `Converse`.
"""

from dataclasses import replace

from extauthz.providers.anthropic import messages
from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.client_headers import KNOWN_BETAS
from extauthz.providers.strict_json import parse_object, read_list, read_string
from extauthz.reasons import Reason
from extauthz.usage import UsageReport

CAP_FIELDS = messages.CAP_FIELDS


def read_request(request: Request, *, stream: bool) -> RequestFacts:
    """The facts of a message to one of Anthropic's models."""
    model = request.path_model
    assert model is not None
    if "anthropic." not in model:
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "what this model's own body asks for cannot be metered: use converse",
        )
    return read_message(request, model, stream=stream)


def read_message(request: Request, model: str, *, stream: bool) -> RequestFacts:
    """The facts of a message whose model stands elsewhere, and whose version in the body."""
    document = parse_object(request.body)
    read_string(document, "anthropic_version")
    if any(beta not in KNOWN_BETAS for beta in read_list(document, "anthropic_beta")):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "'anthropic_beta' has a value that can change what a call costs: send the call "
            "without it",
        )
    return messages.facts_of(
        document, request.body, model, stream=stream, beside=("anthropic_beta", "anthropic_version")
    )


def read_usage(captured: CapturedResponse) -> UsageReport:
    """As the model's maker tells it; the price is that of the model that was asked for.

    The name that the answer has is the maker's, which does not say at which region's price.
    """
    return replace(messages.read_usage(captured), served_model=None)
