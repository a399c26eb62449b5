"""Identifiers: UUIDv7 (RFC 9562), which sort by time and tell when they were minted."""

import secrets
import uuid

_RANDOM_BITS = 74


def uuid7(at_ms: int) -> str:
    """A UUID of version 7 for an instant: 48 bits of time, 74 of randomness."""
    random = secrets.randbits(_RANDOM_BITS)
    high, low = random >> 62, random & (1 << 62) - 1
    value = (at_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low
    return str(uuid.UUID(int=value))
