"""Identifiers: UUIDv7 (RFC 9562), which sort by time and tell when they were minted."""

import hashlib
import secrets
import uuid

_RANDOM_BITS = 74
_MARK_BITS = 62
_MARK = (1 << _MARK_BITS) - 1


def uuid7(at_ms: int, request_id: str = "") -> str:
    """A UUID of version 7 for an instant: 48 bits of time, 74 of randomness.

    A request id decides 62 of these: so it can be told later for which request an id was minted,
    although nothing keeps the two together.
    """
    random = secrets.randbits(_RANDOM_BITS)
    high, low = random >> _MARK_BITS, random & _MARK
    if request_id:
        low = request_mark(request_id)
    value = (at_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def request_mark(request_id: str) -> int:
    """What the ids end with that are minted for this request."""
    digest = hashlib.sha256(request_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") & _MARK


def mark_of(id_: str) -> int | None:
    """What an id ends with; None if it is no UUID."""
    try:
        return uuid.UUID(id_).int & _MARK
    except ValueError:
        return None


def minted_at_ms(id_: str) -> int:
    """When an id was minted."""
    return uuid.UUID(id_).int >> 80
