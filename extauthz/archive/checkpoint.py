"""What was spent up to a segment, so that nobody has to add up the rows before it again."""

import hashlib
import json
from typing import Any

from extauthz.archive.line import encode
from extauthz.ledger import Tally
from extauthz.ledger.counter import Counter


def text_of(tally: Tally) -> bytes:
    """A tally as the one text that is written for it."""
    counters = {
        name: {
            "forget_at_ms": counter.forget_at_ms,
            "spent": str(counter.spent),
            "buckets": {str(at): str(amount) for at, amount in sorted(counter.buckets.items())},
        }
        for name, counter in sorted(tally.counters.items())
    }
    return encode({"seq": tally.last_seq, "counters": counters}).encode() + b"\n"


def tally_in(text: bytes) -> Tally:
    """The tally that a checkpoint says.

    Raises:
        ValueError: it says none.
    """
    try:
        return _tally(json.loads(text))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"is not a checkpoint ({error})") from error


def digest_of(text: bytes) -> str:
    """What the segment that begins here says of its checkpoint."""
    return hashlib.sha256(text).hexdigest()


def _tally(fields: Any) -> Tally:
    return Tally(
        int(fields["seq"]),
        {
            name: Counter(
                int(counter["forget_at_ms"]),
                int(counter["spent"]),
                buckets={int(at): int(amount) for at, amount in counter["buckets"].items()},
            )
            for name, counter in fields["counters"].items()
        },
    )
