"""The books: one row for every ending, correction, conflict and override.

What is spent on a counter is the sum of `Posting.change` over all rows; what a call did cost is the
sum of `Row.change_nanousd` over the rows with its id. Rows are numbered without gaps, and none is
ever changed: a correction is another row.
"""

from dataclasses import dataclass
from enum import StrEnum

_NAME_OF = ":c:"
"""What stands between what all keys of an org begin with and a counter's own name."""


def counter_name(key: str) -> str:
    """A counter as rows name it: its key without what all keys of its org begin with."""
    return key.partition(_NAME_OF)[2]


class RowOutcome(StrEnum):
    """What a row is about."""

    SETTLED = "settled"
    RELEASED = "released"
    ABANDONED = "abandoned"
    EXPIRED_UNCONFIRMED = "expired_unconfirmed"
    """charged because its lease ran out; a `late` row may still confirm or correct it"""
    LATE = "late"
    ANOMALY = "anomaly"
    RECOVERED = "recovered"
    CONFLICT = "conflict"
    """nothing has changed: a call was settled at `cost`, and something else was `claimed`"""
    DEAD_LETTER = "dead_letter"
    """nothing has changed: what was `claimed` has no window any more"""
    OVERRIDE = "override"
    REPAIR = "repair"
    """an operator has set a counter to what the rows say, or the other way round"""
    OPENED = "opened"
    """the first row of all"""


@dataclass(frozen=True, slots=True)
class Posting:
    """One counter's part in a row, in the unit of its budget.

    Attributes:
        counter: the key without what all keys of the org begin with: `BUDGET:WINDOW`.
        held: what the row takes off from what is held.
        charged: what the counter carries for this call from now on.
        before: what it carried for this call before.
        forget_at_ms: when the counter may be forgotten.
    """

    counter: str
    held: int
    charged: int
    before: int
    forget_at_ms: int

    @property
    def change(self) -> int:
        """What the row adds to what is spent."""
        return self.charged - self.before


@dataclass(frozen=True, slots=True)
class Row:
    """One row of an org's books.

    Attributes:
        seq: its number, from 1, without gaps.
        at_ms: when it was written.
        outcome: what it is about.
        id: the reservation, or the override.
        cost_nanousd: what the call is charged from now on, whatever its budgets count.
        cost_before_nanousd: what it was charged before.
        claimed_nanousd: what a settlement said that was not applied.
        charged_at_ms: which bucket of a rolling window the postings are about.
        postings: none where nothing was changed.
        particulars: who asked for what, and what was used: one JSON object, never read here.
    """

    seq: int
    at_ms: int
    outcome: RowOutcome
    id: str
    cost_nanousd: int = 0
    cost_before_nanousd: int = 0
    claimed_nanousd: int | None = None
    charged_at_ms: int = 0
    postings: tuple[Posting, ...] = ()
    particulars: str = ""

    @property
    def change_nanousd(self) -> int:
        """What the row adds to what has been spent."""
        return self.cost_nanousd - self.cost_before_nanousd
