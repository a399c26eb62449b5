"""What Check is asked, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from extauthz.ledger import Balance
from extauthz.policies import FIXED_PRICE, Agent, Line, Upstream
from extauthz.pricing import Estimate, PricedModel
from extauthz.providers.base import Edit, RequestFacts
from extauthz.reasons import Decision, Reason
from extauthz.service.call_record import CallRecord
from extauthz.service.denied import Denied


@dataclass(frozen=True, slots=True)
class CallAttributes:
    """One request as Envoy shows it. `path` is the provider's own, without the route's prefix."""

    provider: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    """minted by Envoy; only ever an index"""
    payloads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """of the tokens that Envoy has verified"""
    principal: str = ""
    """of the client certificate that Envoy has verified"""
    certificate_ends_at_ms: int | None = None
    """of that certificate; None: nobody has shown one"""
    is_whole: bool = True
    """whether `body` is all that goes on to the provider"""


@dataclass(slots=True)
class Verdict:
    """What Check answers, and what the log line and the metrics say about it."""

    decision: Decision
    reason: Reason
    decision_id: str
    at_ms: int
    request_id: str = ""
    status: int = 200
    message: str = ""
    agent: Agent | None = None
    key_hash: str = ""
    is_stored_key: bool = False
    """whether the ledger keeps the key"""
    upstream: Upstream | None = None
    endpoint: str = ""
    """the name of one of the API's endpoints"""
    facts: RequestFacts | None = None
    names: tuple[str, ...] = ()
    """every name that the model, or one that may answer in its place, goes by"""
    priced: PricedModel | None = None
    estimate: Estimate | None = None
    edits: tuple[Edit, ...] = ()
    default_cap: int | None = None
    """what is written into a call that names no output cap"""
    cap_max: int | None = None
    """the largest cap that whatever answers is known to take"""
    output_cap: int | None = None
    """what was written into the body as its output cap; None: nothing was"""
    record: CallRecord | None = None
    lines: tuple[Line, ...] = ()
    balances: tuple[Balance, ...] = ()
    shown: int | None = None
    """index of the line that refused"""
    waited_ms: int = 0

    @property
    def known_model(self) -> str | None:
        """The model that the call names, where that has a price.

        Any other name is a text of the client's own: it is told to nobody, so it is not logged.
        """
        has_price = self.priced is not None or self.endpoint == FIXED_PRICE
        return self.facts.model if has_price and self.facts is not None else None

    def deny(self, denied: Denied) -> None:
        """Refuse the call for this."""
        self.decision = Decision.ERROR if denied.status == 503 else Decision.DENY
        self.reason, self.status, self.message = denied.reason, denied.status, denied.message
