"""Whether a call has ended twice, asked of every row in turn, in bounded memory.

Of each call that has ended 64 bits are kept, in a table that is at least half empty: a Python set
takes five times that, and the endings of a week are millions. When a table is full, the one before
it is forgotten.
"""

from dataclasses import dataclass, field

from extauthz.ledger.rows import Row, RowOutcome

ENDINGS_MAX = 1_000_000
"""As many endings before a row are known for certain, and up to twice as many: 32 MiB in all."""

_FIRST_ENDINGS = frozenset(
    {
        RowOutcome.SETTLED,
        RowOutcome.RELEASED,
        RowOutcome.ABANDONED,
        RowOutcome.EXPIRED_UNCONFIRMED,
        RowOutcome.RECOVERED,
    }
)
"""Each call has one of these; `late` and `anomaly` follow one, the others end nothing."""


class _Marks:
    """A set of numbers, which are never 0."""

    def __init__(self, slots: int) -> None:
        # Memory that nothing was written to costs nothing.
        self._slots = memoryview(bytearray(8 * slots)).cast("q")
        self.count = 0

    def __contains__(self, mark: int) -> bool:
        return self._slots[self._place(mark)] == mark

    def add(self, mark: int) -> None:
        """Take one in that is not there."""
        self._slots[self._place(mark)] = mark
        self.count += 1

    def _place(self, mark: int) -> int:
        """Where it stands, or else where it may."""
        slots, size = self._slots, len(self._slots)
        at = mark % size
        while slots[at] not in (0, mark):
            at = (at + 1) % size
        return at


@dataclass(slots=True)
class Endings:
    """The calls that have ended by the rows so far, or by the last ones, where there are many."""

    endings_max: int = ENDINGS_MAX
    _now: _Marks = field(init=False)
    _before: _Marks = field(init=False)

    def __post_init__(self) -> None:
        self._now, self._before = self._empty(), self._empty()

    def is_second(self, row: Row) -> bool:
        """Take in the next row; whether it ends a call that has ended before."""
        if row.outcome not in _FIRST_ENDINGS:
            return False
        mark = hash(row.id) or 1
        if mark in self._now or mark in self._before:
            return True
        if self._now.count == self.endings_max:
            self._now, self._before = self._empty(), self._now
        self._now.add(mark)
        return False

    def _empty(self) -> _Marks:
        return _Marks(2 * self.endings_max)
