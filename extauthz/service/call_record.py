"""What Check tells the access-log sink about a call, by way of Envoy's metadata.

It carries everything a settlement needs, so that a call is settled right even by another process,
after a restart, or after the store has lost the reservation. Amounts are strings: a protobuf Struct
knows doubles only. It never holds a prompt, a key or a credential.
"""

import json
from typing import NamedTuple

from extauthz.money import AMOUNT_MAX

VERSION = 1

_written = json.JSONEncoder(separators=(",", ":")).encode
"""(`json.dumps` with separators makes an encoder for each call)"""


class RecordError(ValueError):
    """The metadata of an access-log entry is not a call record of this version."""


class HeldPart(NamedTuple):
    """One counter's part: what was held, in `usd` (nano), `tokens`, `requests` or `in_flight`."""

    key: str
    unit: str
    amount: int
    forget_at_ms: int


class CallRecord(NamedTuple):
    """A reserved call. `estimate_nanousd` is the most it can cost, whatever its budgets' units.

    `key` is the short name of the agent's virtual key, `team` is empty where it has none, and
    `price` says where the estimate's price comes from: all for the books only, so that a record of
    an earlier release does without. `endpoint` is the name of one of the API's endpoints; "" is its
    main one, from before it had more. `output_cap` is the cap of one answer that the estimate
    reckons with, where it was chosen here.

    `settle_horizon_ms` is how long its ending is remembered, and a lost settlement recovered: what
    was in force when it was reserved holds for this call, wherever it is ended.
    """

    reservation_id: str
    decision_id: str
    org: str
    agent: str
    provider: str
    model: str
    reserved_at_ms: int
    settle_horizon_ms: int
    estimate_nanousd: int
    parts: tuple[HeldPart, ...]
    key: str = ""
    team: str = ""
    price: str = ""
    endpoint: str = ""
    output_cap: int | None = None

    def particulars(self, **more: object) -> str:
        """Who asked for what, as the ledger's rows say it: one JSON object, never a prompt.

        `more` is what is known once the call has ended; what is None is left out.
        """
        words = {
            "agent": self.agent,
            "key": self.key,
            "team": self.team,
            "provider": self.provider,
            "endpoint": self.endpoint,
            "model": self.model,
            "decision": self.decision_id,
            "reserved_at_ms": str(self.reserved_at_ms),
            "estimate_nanousd": str(self.estimate_nanousd),
            "price": self.price,
            "output_cap": None if self.output_cap is None else str(self.output_cap),
        }
        known = {name: word for name, word in (words | more).items() if word is not None}
        return _written(known)

    def to_json(self) -> str:
        """One line of JSON for Envoy's metadata."""
        return _written(
            {
                "v": VERSION,
                "id": self.reservation_id,
                "decision": self.decision_id,
                "org": self.org,
                "agent": self.agent,
                "key": self.key,
                "team": self.team,
                "provider": self.provider,
                "endpoint": self.endpoint,
                "model": self.model,
                "price": self.price,
                "cap": "" if self.output_cap is None else str(self.output_cap),
                "at": str(self.reserved_at_ms),
                "horizon": str(self.settle_horizon_ms),
                "estimate": str(self.estimate_nanousd),
                "parts": [
                    [part.key, part.unit, str(part.amount), str(part.forget_at_ms)]
                    for part in self.parts
                ],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "CallRecord":
        """Read what `to_json` wrote.

        Raises:
            RecordError: the text is of another shape or version.
        """
        try:
            data = json.loads(text)
            version = data["v"]
            record = cls(
                reservation_id=_text(data["id"]),
                decision_id=_text(data["decision"]),
                org=_text(data["org"]),
                agent=_text(data["agent"]),
                key=_text(data.get("key", "")),
                team=_text(data.get("team", "")),
                provider=_text(data["provider"]),
                endpoint=_text(data.get("endpoint", "")),
                model=_text(data["model"]),
                reserved_at_ms=_number(data["at"]),
                settle_horizon_ms=_number(data["horizon"]),
                estimate_nanousd=_number(data["estimate"], AMOUNT_MAX),
                price=_text(data.get("price", "")),
                output_cap=_number(data["cap"]) if data.get("cap") else None,
                parts=tuple(
                    HeldPart(_text(key), _text(unit), _number(held, AMOUNT_MAX), _number(forget_ms))
                    for key, unit, held, forget_ms in data["parts"]
                ),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise RecordError("the metadata is not a call record") from error
        if version != VERSION:
            raise RecordError(f"a call record of another version than {VERSION}")
        if not record.parts or len({part.key for part in record.parts}) < len(record.parts):
            raise RecordError("a call record without parts, or with a counter twice")
        return record


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is a string")
    return value


def _number(value: object, maximum: int = 2**63) -> int:
    """A whole number of zero or more, which is written as a string."""
    if not isinstance(value, str) or not value.isascii() or not value.isdecimal():
        raise TypeError("an amount is a string of digits")
    number = int(value)
    if number > maximum:
        raise ValueError("an amount is above what the ledger holds")
    return number
