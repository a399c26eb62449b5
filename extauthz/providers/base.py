"""What the product knows of a provider's API: one adapter each, all of this shape, all pure.

An adapter reads a request into facts (never the prompt itself), says which bytes of it to change,
reads usage out of what Envoy captured of the response, and writes refusals that its SDKs know.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from extauthz.reasons import Reason
from extauthz.usage import UsageReport


class Metering(StrEnum):
    """Whether a call to an endpoint costs money."""

    BILLED = "billed"
    FREE = "free"


class Edit(NamedTuple):
    """Replace `dropped` bytes at `offset` of the request body by `text`."""

    offset: int
    dropped: int
    text: str


class CapSlot(NamedTuple):
    """Where an output cap can be written into the body; the number goes between the two texts."""

    offset: int
    dropped: int
    before: str
    after: str

    def edit(self, output_tokens: int) -> Edit:
        """The edit that writes this cap."""
        return Edit(self.offset, self.dropped, f"{self.before}{output_tokens}{self.after}")


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What decides the most that a call can cost. Missing facts make it larger, never smaller.

    Attributes:
        model: as the client wrote it.
        stream: whether the client asked for a stream.
        input_tokens_max: upper bound of the input; None: as much as the model's context takes.
        output_tokens_cap: the client's own cap for one answer; None: it named none.
        answers: how many answers are billed (`n`).
        extra_output_tokens: output that is billed beyond the cap (rejected predictions).
        cache_writes: whether prompt caching can bill above the input price.
        media: whether anything but text goes in or out (then the dearest modality is assumed).
        audio: whether sound may go in or out: it needs a price of its own.
        price_contexts: every price context that may be served (service tiers, speeds).
        premium: the dearer context that the client asks for: it needs a price of its own.
        edits: byte edits that metering needs (asking a stream for its usage).
        cap_slot: where a default cap can be written; None where the client named one.
    """

    model: str
    stream: bool
    input_tokens_max: int | None
    output_tokens_cap: int | None
    answers: int = 1
    extra_output_tokens: int = 0
    cache_writes: bool = False
    media: bool = False
    audio: bool = False
    price_contexts: tuple[Mapping[str, str], ...] = ({},)
    premium: Mapping[str, str] | None = None
    edits: tuple[Edit, ...] = ()
    cap_slot: CapSlot | None = None


@dataclass(frozen=True, slots=True)
class CapturedResponse:
    """What Envoy's Lua lifted out of a response: raw JSON texts of root-level fields, or None."""

    usage: str | None = None
    usage_start: str | None = None
    model: str | None = None
    service_tier: str | None = None
    error: bool = False
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal before it has a provider's shape. `message` says what happened and what to do."""

    status: int
    reason: Reason
    message: str
    decision_id: str
    details: Mapping[str, str] = field(default_factory=dict)


class RequestError(ValueError):
    """A request that cannot be metered, with the reason to refuse it for."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives pickling between processes
        self.reason = reason
        self.message = message


class Adapter(Protocol):
    """One provider API."""

    price_provider: str
    """The genai-prices id whose list applies where the upstream's URL does not decide."""

    def metering(self, method: str, path: str) -> Metering | None:
        """Whether this endpoint is billed or free; None: not metered, so refused."""

    def read_request(self, path: str, body: bytes) -> RequestFacts:
        """The facts of a billed request.

        Raises:
            RequestError: the body is unreadable, ambiguous, or asks for what cannot be metered.
        """

    def read_usage(self, captured: CapturedResponse) -> UsageReport:
        """What the response says was used; unreadable or contradictory usage is unknown."""

    def refusal_body(self, refusal: Refusal) -> bytes:
        """A JSON body in the provider's own error shape."""
