"""`InvokeModel` and `InvokeModelWithResponseStream` of Anthropic's models, with their own body.

From
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-anthropic-claude-messages.html.
What is neither theirs nor in `native` can be had by `Converse`.
"""

from extauthz.providers.anthropic import hosted
from extauthz.providers.base import Request, RequestError, RequestFacts
from extauthz.reasons import Reason

CAP_FIELDS = hosted.CAP_FIELDS
read_usage = hosted.read_usage


def read_request(request: Request, *, stream: bool) -> RequestFacts:
    """The facts of a message to one of Anthropic's models."""
    if "anthropic." not in (request.path_model or ""):
        raise RequestError(
            Reason.UNMETERED_ENDPOINT,
            "what this model's own body asks for cannot be metered: use converse",
        )
    return hosted.read_request(request, stream=stream)
