"""Messages to Anthropic's models at AWS and Google: model in the path, version in the body."""

from dataclasses import replace

from extauthz.providers.anthropic import messages
from extauthz.providers.base import CapturedResponse, Request, RequestError, RequestFacts
from extauthz.providers.client_headers import KNOWN_BETAS
from extauthz.providers.strict_json import parse_object, read_flag, read_list, read_string
from extauthz.reasons import Reason
from extauthz.usage import UsageReport

CAP_FIELDS = messages.CAP_FIELDS
_BESIDE = ("anthropic_beta", "anthropic_version")


def read_request(request: Request, *, stream: bool, beside: tuple[str, ...] = ()) -> RequestFacts:
    """The facts of a message; whether it streams, the path says, and the body may repeat."""
    assert request.path_model is not None
    document = parse_object(request.body)
    read_string(document, "anthropic_version")
    if any(beta not in KNOWN_BETAS for beta in read_list(document, "anthropic_beta")):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "'anthropic_beta' has a value that can change what a call costs: send the call "
            "without it",
        )
    if read_flag(document, "stream") and not stream:
        raise RequestError(
            Reason.AMBIGUOUS_BODY, "'stream' is not what the path says: leave it out"
        )
    return messages.facts_of(
        document,
        request.body,
        request.path_model,
        stream=stream,
        beside=(*_BESIDE, *beside),
        unnamed_geo="global",  # (where it is answered, the upstream's address or the model says)
    )


def read_usage(captured: CapturedResponse) -> UsageReport:
    """As Anthropic tells it; the price is that of the model that was asked for.

    The name that the answer has is Anthropic's own, which does not say at which region's price.
    """
    return replace(messages.read_usage(captured), served_model=None)
