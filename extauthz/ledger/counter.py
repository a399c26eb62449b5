"""What is spent and held on one counter: one budget in one window."""

from dataclasses import dataclass, field

from extauthz.ledger.commands import Balance
from extauthz.ledger.rolling import bucket_at, oldest_bucket, window_end_ms


@dataclass(slots=True)
class Counter:
    """A counter as it stands. `width_ms` is that of its buckets, None in a calendar window."""

    forget_at_ms: int
    spent: int = 0
    """stays 0 in a rolling window"""
    held: int = 0
    buckets: dict[int, int] = field(default_factory=dict)
    """what is spent in a rolling window"""

    def balance(self, width_ms: int | None, at_ms: int) -> Balance:
        """What counts at an instant."""
        if width_ms is None:
            return Balance(self.spent, self.held)
        oldest = oldest_bucket(at_ms, width_ms)
        return Balance(sum(n for at, n in self.buckets.items() if at >= oldest), self.held)

    def spend(self, width_ms: int | None, at_ms: int, charged_at_ms: int, change: int) -> None:
        """Change what is spent; in a rolling window, what was charged at an instant."""
        if width_ms is None:
            self.spent = max(0, self.spent + change)
            return
        self.forget_at_ms = max(self.forget_at_ms, window_end_ms(at_ms, width_ms))
        self._correct(width_ms, at_ms, charged_at_ms, change)

    def _correct(self, width_ms: int, at_ms: int, charged_at_ms: int, change: int) -> None:
        """Change the bucket that was charged, as long as it counts (see rolling.py)."""
        now, oldest = bucket_at(at_ms, width_ms), oldest_bucket(at_ms, width_ms)
        bucket = bucket_at(charged_at_ms, width_ms)
        if bucket < oldest:
            bucket, change = now, max(0, change)
        if change:
            self.buckets[bucket] = max(0, self.buckets.get(bucket, 0) + change)
        self.buckets = {at: n for at, n in self.buckets.items() if at >= oldest}
