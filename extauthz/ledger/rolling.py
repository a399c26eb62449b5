"""Rolling windows: what was spent within the last hour, day, week or 30 days, at any instant.

A counter keeps no list of calls. Time is cut into buckets of equal width, and an amount is added to
the bucket of the moment in which it becomes spent. What counts at an instant is the sum of the
buckets that the window touches; the oldest one counts whole, although a part of it has left. So an
amount counts for a whole window and up to one bucket longer, never shorter: any error is against
the agent. There are at most `BUCKETS` of them, in one hash.

Spent and not reserved decides the bucket, because a call that lasts (a stream of an hour against a
window of an hour) would else have left the window before it was billed. Until then it is held, and
`held` is one plain counter that no window ends.

A late settlement corrects the bucket that its expiry charged. Where that has left the window, there
is nothing to give back, and what is still to be charged goes to the bucket of now.

The width stands at the end of the counter's key, so that no command needs to bring it along.
"""

import re

BUCKETS = 96

_SKEW_MS = 2_000
"""Two callers, each as far off as a store accepts, one ahead and one behind."""

_WIDTH = re.compile(r":rolling-([1-9][0-9]*)$")


def bucket_width_ms(length_ms: int) -> int:
    """How wide the buckets of a window are, such that all but one of them cover it."""
    return -(-(length_ms + _SKEW_MS) // (BUCKETS - 1))


def width_of(key: str) -> int | None:
    """The width of a rolling counter's buckets; None for the counter of a calendar window.

    The last part of a calendar counter's key is a number or `total`, so no budget's name can look
    like this.
    """
    found = _WIDTH.search(key)
    return int(found[1]) if found else None


def bucket_at(at_ms: int, width_ms: int) -> int:
    """The bucket that an instant lies in."""
    return at_ms // width_ms


def oldest_bucket(at_ms: int, width_ms: int) -> int:
    """The first of the buckets that count at an instant."""
    return bucket_at(at_ms, width_ms) - (BUCKETS - 1)


def window_end_ms(at_ms: int, width_ms: int) -> int:
    """When what is spent at an instant has left the window for certain."""
    return at_ms + BUCKETS * width_ms
