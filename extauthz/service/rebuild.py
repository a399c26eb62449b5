"""An org's counters made again from the archive, when the store has lost books, or a part of them.

The order makes it safe to stop anywhere and begin again: what the store still has and the archive
has not is archived first; then the books are closed, so that nothing is granted or charged; then
everything is put back; the last step opens the books. Until then every Check is refused.

What cannot be known is what was written after the archive's last row and is gone with the store:
the file access log has it (`extauthz reconcile`), and charges it as `recovered`.
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from extauthz.archive import ArchiveWriter
from extauthz.errors import OperatorError
from extauthz.ledger import (
    Applied,
    Change,
    Counter,
    Override,
    Row,
    RowOutcome,
    State,
    Tally,
    counter_name,
    width_of,
)
from extauthz.service.rules import Clock
from extauthz.store.base import StoredReservation, counter_key_of
from extauthz.store.bookkeeping import Bookkeeping

_ROWS_AT_ONCE = 1000
_KEPT_MS = 35 * 86_400_000
_STATES = {
    RowOutcome.SETTLED: State.SETTLED,
    RowOutcome.RECOVERED: State.SETTLED,
    RowOutcome.LATE: State.SETTLED,
    RowOutcome.ANOMALY: State.SETTLED,
    RowOutcome.RELEASED: State.RELEASED,
    RowOutcome.ABANDONED: State.RELEASED,
    RowOutcome.EXPIRED_UNCONFIRMED: State.EXPIRED,
}


class RebuildError(OperatorError):
    """Nothing to rebuild, or not now; the text says why."""


class Ledger(Protocol):
    """The store, as far as a rebuild reads and tells it."""

    async def rows(self, org: str, after_seq: int, count: int) -> list[Row]:
        """Rows that are still there."""

    async def open_ids(self, org: str) -> list[str]:
        """What is held."""

    async def reservations(self, org: str, ids: list[str]) -> dict[str, StoredReservation]:
        """How these stand."""

    async def override(self, command: Override) -> Applied:
        """Change a limit, or pause somebody."""


@dataclass(slots=True)
class Rebuilt:
    """What was put back.

    Attributes:
        last_seq: the archive's last row.
        adopted: rows that only the store had, archived now.
        contradicted: rows of the store about calls that the archive knows ended: left out.
        counters: how many were made again.
        endings: how many ended reservations are remembered again.
        overrides: how many changes by operators were carried out again.
    """

    last_seq: int = 0
    adopted: int = 0
    contradicted: int = 0
    counters: int = 0
    endings: int = 0
    overrides: int = 0


@dataclass(slots=True)
class _Books:
    """What the archive says."""

    tally: Tally = field(default_factory=Tally)
    endings: dict[str, Row] = field(default_factory=dict)
    """the last row that ended each reservation, as long as it is to be remembered"""
    overrides: list[Row] = field(default_factory=list)

    def add(self, row: Row, remembered_after_ms: int) -> None:
        self.tally.add(row)
        if row.outcome in _STATES and row.at_ms > remembered_after_ms:
            self.endings[row.id] = row
        if row.outcome is RowOutcome.OVERRIDE:
            self.overrides.append(row)


class Rebuilder:
    """Makes an org's ledger again in the store."""

    def __init__(
        self,
        ledger: Ledger,
        bookkeeping: Bookkeeping,
        writer: ArchiveWriter,
        clock: Clock,
        settle_horizon_ms: int,
    ) -> None:
        self._ledger = ledger
        self._bookkeeping = bookkeeping
        self._writer = writer
        self._clock = clock
        self._horizon_ms = settle_horizon_ms

    async def rebuild(self, org: str, *, reason: str) -> Rebuilt:
        """Put everything back that the archive knows, and open the books.

        Raises:
            RebuildError: the store has all that the archive has.
            StoreError: begin again; until then the books are closed.
        """
        result = Rebuilt()
        books = await self._adopt(org, result)
        await self._restore_endings(org, books, result)
        await self._restore_counters(org, books, result)
        await self._open(org, {"rebuilt": reason}, result)
        await self._repeat_overrides(org, books, result)
        return result

    async def go_on(self, org: str, *, reason: str) -> Rebuilt:
        """Open the books as the store stands: what it has lost is not counted any more.

        Raises:
            RebuildError: the store has all that the archive has.
            StoreError: begin again; until then the books are closed.
        """
        result = Rebuilt()
        await self._adopt(org, result)
        await self._open(org, {"gone on without": reason}, result)
        return result

    async def _adopt(self, org: str, result: Rebuilt) -> _Books:
        """Archive what only the store has, close the books, and read all that is archived."""
        archive, books = self._writer.archive, _Books()
        remembered_after_ms = self._clock() - self._horizon_ms
        for row in archive.rows():
            books.add(row, remembered_after_ms)
        last_read, news = 0, []
        stream = [row async for row in self._stream(org)]
        if stream:
            last_read = stream[-1].seq
            is_behind = last_read < archive.last_seq
            archived = {row.seq: row for row in archive.rows(stream[0].seq - 1)}
            news = [row for row in stream if archived.get(row.seq) != row]
            has_diverged = any(row.seq in archived for row in news)
            if not (is_behind or has_diverged):
                raise RebuildError(
                    f"the store has all that the archive of the org '{org}' has: there is nothing "
                    "to rebuild; `extauthz audit` compares its counters"
                )
        for row in news:
            if row.outcome in (RowOutcome.OPENED, RowOutcome.REPAIR):
                continue
            if row.id in books.endings and row.outcome is not RowOutcome.OVERRIDE:
                result.contradicted += 1
                continue
            adopted = replace(row, seq=self._writer.last_seq + 1)
            self._writer.append([adopted])
            books.add(adopted, remembered_after_ms)
            result.adopted += 1
        if not await self._bookkeeping.close(org, last_read):
            raise RebuildError(
                f"rows were written to the books of the org '{org}' meanwhile: stop the services "
                "on this store, and start again"
            )
        result.last_seq = self._writer.last_seq
        return books

    async def _stream(self, org: str) -> AsyncIterator[Row]:
        after_seq = 0
        while rows := await self._ledger.rows(org, after_seq, _ROWS_AT_ONCE):
            for row in rows:
                yield row
            after_seq = rows[-1].seq

    async def _restore_endings(self, org: str, books: _Books, result: Rebuilt) -> None:
        for id_, row in books.endings.items():
            state = _STATES[row.outcome]
            await self._bookkeeping.restore_ended(
                org,
                id_,
                dict(_record_fields(org, row, state)),
                row.at_ms + self._horizon_ms,
                expired=state is State.EXPIRED,
            )
            result.endings += 1

    async def _restore_counters(self, org: str, books: _Books, result: Rebuilt) -> None:
        now_ms = self._clock()
        held = await self._held(org, books)
        counters = {n: c for n, c in books.tally.counters.items() if c.forget_at_ms > now_ms}
        for key in await self._bookkeeping.counter_keys(org):
            counters.setdefault(counter_name(key), Counter(now_ms + _KEPT_MS))
        for name, counter in counters.items():
            if width_of(name) is None:
                fields = {"spent": counter.spent}
            else:
                fields = {str(bucket): amount for bucket, amount in counter.buckets.items()}
            fields["held"] = held[name]
            key = counter_key_of(org, name)
            await self._bookkeeping.restore_counter(org, key, fields, counter.forget_at_ms)
            result.counters += 1

    async def _held(self, org: str, books: _Books) -> Mapping[str, int]:
        """What is held by the reservations that the store still has, on each counter."""
        held: dict[str, int] = defaultdict(int)
        ids = [id_ for id_ in await self._ledger.open_ids(org) if id_ not in books.endings]
        for at in range(0, len(ids), _ROWS_AT_ONCE):
            records = await self._ledger.reservations(org, ids[at : at + _ROWS_AT_ONCE])
            for record in records.values():
                if record.state is State.HELD:
                    for key, amount in zip(record.keys, record.held, strict=True):
                        held[counter_name(key)] += amount
        return held

    async def _open(self, org: str, words: dict[str, str], result: Rebuilt) -> None:
        particulars = json.dumps(words, separators=(",", ":"))
        await self._bookkeeping.restore_archived(org, result.last_seq, self._writer.last_hash)
        await self._bookkeeping.open(org, self._clock(), result.last_seq + 1, particulars)

    async def _repeat_overrides(self, org: str, books: _Books, result: Rebuilt) -> None:
        """Carry out again, in order, what operators had changed."""
        for row in books.overrides:
            words = json.loads(row.particulars)
            at_ms = self._clock()
            applied = await self._ledger.override(
                Override(
                    row.id,
                    org,
                    at_ms,
                    Change(words["change"]),
                    words["target"],
                    at_ms + self._horizon_ms,
                    int(words.get("amount", "0")),
                    int(words["until_ms"]) if "until_ms" in words else None,
                    words.get("note", ""),
                )
            )
            result.overrides += applied is Applied.APPLIED


def _record_fields(org: str, row: Row, state: State) -> Iterator[tuple[str, str]]:
    """What the store remembers of an ended reservation; see `prelude.lua`."""
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
