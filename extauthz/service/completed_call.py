"""A call as Envoy's access log tells it, and what follows from that for the ledger."""

from dataclasses import dataclass
from enum import StrEnum

from extauthz.providers.base import CapturedResponse
from extauthz.service.call_record import CallRecord

# What Envoy itself may write once a request has left. That the provider wrote any other status is
# certain even where the agent hung up half-way: SDKs do so before they try again.
_ENVOYS_OWN_STATUS = frozenset({413, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class CompletedCall:
    """One access-log entry of a call that Check has reserved.

    Attributes:
        record: what Check reserved.
        captured: what Lua lifted out of the response.
        status: the response's status, 0 if there was none.
        via_upstream: the provider itself answered, not Envoy in its place.
        client_left: the agent hung up; then Envoy no longer tells who wrote the status.
        left: at least one byte of the request went to the provider.
        refused: every attempt was refused by the connection or the stream, before any processing.
        periodic: the stream is still open.
        ended_at_ms: when the entry was written.
        duration_ms: how long the call took.
    """

    record: CallRecord
    captured: CapturedResponse
    status: int
    via_upstream: bool
    left: bool
    refused: bool
    periodic: bool
    ended_at_ms: int
    duration_ms: int = 0
    client_left: bool = False


class Ending(StrEnum):
    """What an entry asks of the ledger."""

    RENEW = "renew"
    RELEASE = "release"
    CHARGE = "charge"


def ending_of(call: CompletedCall, unbilled: frozenset[int]) -> Ending:
    """Rule 5: release only on proof that nothing was billed, charge everything else.

    Proof is that the request never left, or that the provider itself refused it. A 502 that Envoy
    wrote after sending, a reset, a timeout or a client that left prove nothing. `unbilled` are the
    statuses for which this provider bills nothing.
    """
    if call.periodic:
        return Ending.RENEW
    told = (call.captured.usage, call.captured.usage_start, call.captured.metrics)
    if any(one is not None for one in told):
        return Ending.CHARGE  # whatever else the entry says, the provider has begun to count
    if not call.left or call.refused:
        return Ending.RELEASE
    if call.via_upstream and call.status in unbilled:
        return Ending.RELEASE
    if call.client_left and call.status in unbilled - _ENVOYS_OWN_STATUS:
        return Ending.RELEASE
    return Ending.CHARGE
