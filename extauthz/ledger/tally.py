"""Rows added up: what the counters must show, if the books and the counters agree."""

from dataclasses import dataclass, field

from extauthz.ledger.counter import Counter
from extauthz.ledger.rolling import width_of
from extauthz.ledger.rows import Row


class RowGapError(Exception):
    """A row is missing, or stands twice; the text names it."""


@dataclass(slots=True)
class Tally:
    """What is spent on each counter by the rows up to `last_seq`, by the counter's name."""

    last_seq: int = 0
    counters: dict[str, Counter] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Add the next row.

        Raises:
            RowGapError: it is not the next one; nothing was added.
        """
        if row.seq != self.last_seq + 1:
            raise RowGapError(f"row {self.last_seq + 1} is missing: row {row.seq} comes instead")
        self.last_seq = row.seq
        for posting in row.postings:
            counter = self.counters.setdefault(posting.counter, Counter(posting.forget_at_ms))
            counter.forget_at_ms = max(counter.forget_at_ms, posting.forget_at_ms)
            width_ms = width_of(posting.counter)
            counter.spend(width_ms, row.at_ms, row.charged_at_ms, posting.change)

    def spent(self, counter: str, at_ms: int) -> int:
        """What a counter must show as spent at an instant."""
        found = self.counters.get(counter)
        return found.balance(width_of(counter), at_ms).spent if found else 0

    def forget(self, at_ms: int) -> None:
        """Drop the counters that no settlement can reach any more."""
        self.counters = {n: c for n, c in self.counters.items() if c.forget_at_ms > at_ms}
