"""Where a counter does not show what the books say. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from extauthz.ledger import CLOCK_SKEW_MS_MAX, Counter, Tally, counter_name, oldest_bucket, width_of
from extauthz.store.bookkeeping import Correction, Fields

_NEARLY_FORGOTTEN_MS = 5_000


@dataclass(frozen=True, slots=True)
class Drift:
    """A counter that does not show what it must. Amounts are in its budget's unit."""

    key: str
    what: str
    """`spent` or `held`"""
    shown: int
    due: int
    corrections: tuple[Correction, ...]
    forget_at_ms: int
    """when the books or who holds something of it let it be forgotten; 0 where neither knows it"""

    @property
    def counter(self) -> str:
        """The counter as rows name it."""
        return counter_name(self.key)

    @property
    def amount(self) -> int:
        """How much too much it shows."""
        return self.shown - self.due


def spent_drift(key: str, fields: Fields, tally: Tally, at_ms: int) -> list[Drift]:
    """How what is spent differs at an instant after the cut, if it does.

    A counter that is about to be forgotten may be gone.
    """
    name, width_ms = counter_name(key), width_of(key)
    counter = tally.counters.get(name, Counter(0))
    if not fields and counter.forget_at_ms <= at_ms + _NEARLY_FORGOTTEN_MS:
        return []
    shows = {field: n for field, n in fields.items() if field != "held"}
    if width_ms is None:
        says = {"spent": counter.spent}
    else:
        says = {str(bucket): n for bucket, n in counter.buckets.items()}
        # A caller whose clock is ahead of ours may have dropped what is about to leave the window.
        oldest = oldest_bucket(at_ms + 2 * CLOCK_SKEW_MS_MAX, width_ms)
        shows = {bucket: n for bucket, n in shows.items() if int(bucket) >= oldest}
        says = {bucket: n for bucket, n in says.items() if int(bucket) >= oldest}
    corrections = tuple(
        Correction(field, shows.get(field), says.get(field, 0))
        for field in sorted({*shows, *says})
        if shows.get(field, 0) != says.get(field, 0)
    )
    if not corrections:
        return []
    shown, due = sum(shows.values()), sum(says.values())
    return [Drift(key, "spent", shown, due, corrections, counter.forget_at_ms)]


def held_drift(key: str, fields: Fields, due: int, forget_at_ms: int) -> list[Drift]:
    """How what is held differs, if it does."""
    shown = fields.get("held", 0)
    if shown == due:
        return []
    corrections = (Correction("held", fields.get("held"), due),)
    return [Drift(key, "held", shown, due, corrections, forget_at_ms)]


def held_by(ids: Iterable[str], held: Mapping[str, Mapping[str, int]]) -> Mapping[str, int]:
    """What these reservations hold on each counter together."""
    total: dict[str, int] = defaultdict(int)
    for id_ in ids:
        for counter, amount in held.get(id_, {}).items():
            total[counter] += amount
    return total
