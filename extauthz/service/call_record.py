"""What Check tells the access-log sink about a call, by way of Envoy's metadata.

It carries everything a settlement needs, so that a call is settled right even by another process,
after a restart, or after the store has lost the reservation. Amounts are strings: a protobuf Struct
knows doubles only. It never holds a prompt, a key or a credential.
"""

import json
from dataclasses import dataclass
from typing import NamedTuple

from extauthz.money import AMOUNT_MAX

VERSION = 1


class RecordError(ValueError):
    """The metadata of an access-log entry is not a call record of this version."""


class HeldPart(NamedTuple):
    """One counter's part: what was held, in `usd` (nano), `tokens`, `requests` or `in_flight`."""

    key: str
    unit: str
    amount: int
    forget_at_ms: int


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A reserved call. `estimate_nanousd` is the most it can cost, whatever its budgets' units."""

    reservation_id: str
    decision_id: str
    org: str
    agent: str
    provider: str
    model: str
    reserved_at_ms: int
    estimate_nanousd: int
    parts: tuple[HeldPart, ...]

    def to_json(self) -> str:
        """One line of JSON for Envoy's metadata."""
        return json.dumps(
            {
                "v": VERSION,
                "id": self.reservation_id,
                "decision": self.decision_id,
                "org": self.org,
                "agent": self.agent,
                "provider": self.provider,
                "model": self.model,
                "at": str(self.reserved_at_ms),
                "estimate": str(self.estimate_nanousd),
                "parts": [
                    [part.key, part.unit, str(part.amount), str(part.forget_at_ms)]
                    for part in self.parts
                ],
            },
            separators=(",", ":"),
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
                _text(data["id"]),
                _text(data["decision"]),
                _text(data["org"]),
                _text(data["agent"]),
                _text(data["provider"]),
                _text(data["model"]),
                _number(data["at"]),
                _number(data["estimate"], AMOUNT_MAX),
                tuple(
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
