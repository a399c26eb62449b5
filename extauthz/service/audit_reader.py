"""What an audit finds, and the books as it reads them: row by row, once, in bounded memory."""

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from extauthz.ledger import Row, RowGapError, Tally, counter_name
from extauthz.service.drift import Drift

_FINDINGS_MAX = 100


class Past(Protocol):
    """The rows of an org, wherever they are kept."""

    def checkpoint(self) -> Tally:
        """What is added up already; the rows after it follow."""

    def rows(self, after_seq: int) -> AsyncIterator[Row]:
        """Every row after a number, in order, up to the last one there is."""


@dataclass(slots=True)
class Audit:
    """What an audit has found.

    Attributes:
        org: whose books.
        last_seq: up to which row.
        rows: how many rows were read after the checkpoint.
        counters: how many counters were compared.
        open: how many reservations were open at the first cut.
        drifts: counters that do not show what the books say.
        findings: what is wrong with the books themselves, in words.
    """

    org: str
    last_seq: int = 0
    rows: int = 0
    counters: int = 0
    open: int = 0
    drifts: list[Drift] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether everything agrees."""
        return not self.drifts and not self.findings


@dataclass(slots=True)
class BooksReader:
    """Reads the books on, row by row, and keeps what the cuts need."""

    past: Past
    audit: Audit
    tally: Tally
    wanted: set[str] = field(default_factory=set)
    """open at a cut, but ended when they were looked at: their rows say what they held"""
    held: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """what each held on each counter, by its name"""
    kept_for_holds: dict[str, int] = field(default_factory=dict)
    """until when counters, by name, must be kept for those that hold something of them"""
    _rows: AsyncIterator[Row] | None = None

    async def read_to(self, seq: int) -> None:
        """Add the rows up to a number."""
        while self.tally.last_seq < seq:
            if not await self._read_one():
                self.find(f"row {self.tally.last_seq + 1} is missing: the books end before it")
                self.tally.last_seq = seq

    async def read_on(self) -> None:
        """Add what was written meanwhile."""
        while await self._read_one():
            pass

    def keep(self, counters: Iterable[tuple[str, int]]) -> None:
        """Note the keys that an open reservation stands on, and until when each is kept for it."""
        for key, forget_at_ms in counters:
            name = counter_name(key)
            self.kept_for_holds[name] = max(self.kept_for_holds.get(name, 0), forget_at_ms)

    def forget_at_ms(self, counter: str) -> int:
        """When a counter may be forgotten, by its rows and its holds; 0 where there is neither."""
        known = self.tally.counters.get(counter)
        by_rows = known.forget_at_ms if known else 0
        return max(by_rows, self.kept_for_holds.get(counter, 0))

    async def _read_one(self) -> bool:
        row = None if self._rows is None else await anext(self._rows, None)
        if row is None:  # at its end, or not begun
            self._rows = self.past.rows(self.tally.last_seq)
            row = await anext(self._rows, None)
        if row is None:
            self._rows = None
            return False
        try:
            self.tally.add(row)
        except RowGapError as error:
            self.find(str(error))
            self.tally.last_seq = row.seq - 1
            self.tally.add(row)
        self.audit.rows += 1
        self._note(row)
        return True

    def _note(self, row: Row) -> None:
        if row.id in self.wanted and any(posting.held for posting in row.postings):
            self.held[row.id] = {posting.counter: posting.held for posting in row.postings}

    def find(self, what: str) -> None:
        """Note what is wrong with the books."""
        if len(self.audit.findings) < _FINDINGS_MAX:
            self.audit.findings.append(what)
