"""What an archive says of an org, in the words of the store that is to be made again."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from extauthz.ledger import Counter, Posting, Row, RowOutcome, State, Tally, oldest_bucket, width_of
from extauthz.store.base import counter_key_of
from extauthz.store.bookkeeping import Fields

STATES = {
    RowOutcome.SETTLED: State.SETTLED,
    RowOutcome.RECOVERED: State.SETTLED,
    RowOutcome.LATE: State.SETTLED,
    RowOutcome.ANOMALY: State.SETTLED,
    RowOutcome.RELEASED: State.RELEASED,
    RowOutcome.ABANDONED: State.RELEASED,
    RowOutcome.EXPIRED_UNCONFIRMED: State.EXPIRED,
}
"""which state a reservation is in after each kind of ending"""

_CHARGES = frozenset(
    {RowOutcome.SETTLED, RowOutcome.RECOVERED, RowOutcome.LATE, RowOutcome.ANOMALY}
)
_PROOFS = frozenset({RowOutcome.RELEASED, RowOutcome.ABANDONED})


@dataclass(slots=True)
class ArchivedBooks:
    """What the archive says, row by row."""

    tally: Tally = field(default_factory=Tally)
    endings: dict[str, Row] = field(default_factory=dict)
    """the last row that ended each reservation, as long as it is to be remembered"""
    overrides: list[Row] = field(default_factory=list)
    """each was applied, in this order, even if its id had been there before and was forgotten"""

    def add(self, row: Row, *, is_remembered: bool) -> None:
        """Count the next row; a remembered ending is put back into the store."""
        self.tally.add(row)
        if row.outcome in STATES and is_remembered:
            self.endings[row.id] = row
        if row.outcome is RowOutcome.OVERRIDE:
            self.overrides.append(row)

    def live(self, at_ms: int) -> dict[str, Counter]:
        """The counters whose windows are not forgotten yet, by name."""
        return {n: c for n, c in self.tally.counters.items() if c.forget_at_ms > at_ms}

    def news_in(self, row: Row) -> Row | None:
        """What a row that only the store has adds to these, by the ledger's table; None: nothing.

        The store was set back to before the archived ending, and has ended the call once more.
        """
        if row.outcome is RowOutcome.OVERRIDE:
            said = (row.id, _override_of(row))
            return None if said in ((one.id, _override_of(one)) for one in self.overrides) else row
        ending = self.endings.get(row.id)
        if ending is None:
            return row
        state = STATES[ending.outcome]
        if state is State.EXPIRED and row.outcome in _CHARGES:
            return _corrected(ending, row)
        if state is State.EXPIRED and row.outcome in _PROOFS:
            return _proven_free(ending, row)
        if state is State.RELEASED and row.outcome in _CHARGES:
            return _billed_after_all(row)
        return None


def _override_of(row: Row) -> Mapping[str, str]:
    """What an override has changed.

    The same by the same id is a repeat. An id that says something else was forgotten, and used
    again: for another end at least.
    """
    words: Mapping[str, str] = json.loads(row.particulars)
    return {name: word for name, word in words.items() if name != "note"}


def written_off(
    name: str, counter: Counter, fields: Fields, at_ms: int
) -> Iterator[tuple[int, Posting]]:
    """What makes the sum of the rows what a counter shows, and of when each part is."""
    width_ms, forget_at_ms = width_of(name), counter.forget_at_ms
    if width_ms is None:
        shown = fields.get("spent", 0)
        if shown != counter.spent:
            yield at_ms, Posting(name, 0, shown, counter.spent, forget_at_ms)
        return
    shown_in = {int(name): amount for name, amount in fields.items() if name != "held"}
    oldest = oldest_bucket(at_ms, width_ms)
    for bucket in sorted(shown_in.keys() | counter.buckets.keys()):
        shown, spent = shown_in.get(bucket, 0), counter.buckets.get(bucket, 0)
        if shown != spent and bucket >= oldest:  # no older one counts
            yield bucket * width_ms, Posting(name, 0, shown, spent, forget_at_ms)


def _corrected(ending: Row, row: Row) -> Row | None:
    """What a call did cost, told after its lease was charged; None if that is known already."""
    charged_at = {posting.counter: posting.charged for posting in ending.postings}
    if charged_at.keys() != {posting.counter for posting in row.postings}:
        return None
    postings = tuple(
        replace(posting, held=0, before=charged_at[posting.counter]) for posting in row.postings
    )
    return replace(
        row,
        outcome=RowOutcome.LATE,
        cost_before_nanousd=ending.cost_nanousd,
        charged_at_ms=ending.charged_at_ms,
        postings=postings,
    )


def _proven_free(ending: Row, row: Row) -> Row:
    """That a call whose lease was charged has cost nothing; a mark of an unknown id says so too."""
    postings = tuple(
        replace(posting, held=0, charged=0, before=posting.charged) for posting in ending.postings
    )
    return replace(
        row,
        outcome=RowOutcome.LATE,
        cost_nanousd=0,
        cost_before_nanousd=ending.cost_nanousd,
        charged_at_ms=ending.charged_at_ms,
        postings=postings,
    )


def _billed_after_all(row: Row) -> Row | None:
    """What a call did cost that was given back; None if it has cost nothing there either."""
    if not (row.cost_nanousd or any(posting.charged for posting in row.postings)):
        return None
    return replace(
        row,
        outcome=RowOutcome.ANOMALY,
        cost_before_nanousd=0,
        charged_at_ms=row.at_ms,
        postings=tuple(replace(posting, held=0, before=0) for posting in row.postings),
    )


def record_fields(org: str, row: Row) -> Iterator[tuple[str, str]]:
    """What the store remembers of the reservation that a row ended; see `prelude.lua`."""
    state = STATES[row.outcome]
    yield "state", state.value
    yield "charged", " ".join(str(posting.charged) for posting in row.postings)
    yield "cost", str(row.cost_nanousd)
    if state is State.SETTLED:
        return
    if state is State.EXPIRED:
        yield "charged_at", str(row.charged_at_ms)
    yield "p", row.particulars
    for n, posting in enumerate(row.postings, 1):
        yield f"k{n}", counter_key_of(org, posting.counter)
        yield f"f{n}", str(posting.forget_at_ms)
