"""An org's counters made again from the archive, when the store has lost books, or a part of them.

The order makes it safe to stop anywhere and begin again: what the store still has and the archive
has not is archived first; then the books are closed, so that nothing is granted or charged; then
everything is put back, what operators have changed too; the last step opens the books. Until then
every Check is refused. All of it under the archive's lock, so that nobody else writes meanwhile.

What cannot be known is what was written after the archive's last row and is gone with the store:
the file access log has it (`extauthz reconcile`), and charges it as `recovered`.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from extauthz.archive import Archive, ArchiveWriter
from extauthz.errors import OperatorError
from extauthz.ledger import (
    Applied,
    Change,
    Counter,
    Override,
    OverrideBook,
    Row,
    RowOutcome,
    Standing,
    State,
    counter_name,
    width_of,
)
from extauthz.service.archived_books import STATES, ArchivedBooks, record_fields, written_off
from extauthz.service.lines import NEVER_MS
from extauthz.service.rules import Clock
from extauthz.store.base import StoredReservation, counter_key_of
from extauthz.store.bookkeeping import Bookkeeping

_ROWS_AT_ONCE = 1000
_TRIES, _PAUSE_S = 100, 0.1
_KEPT_MS = 35 * 86_400_000


class RebuildError(OperatorError):
    """Not now; the text says why."""


class NothingToRebuildError(RebuildError):
    """The store has all that the archive has."""


class Ledger(Protocol):
    """The store, as far as a rebuild reads and tells it."""

    async def rows(self, org: str, after_seq: int, count: int) -> list[Row]:
        """Rows that are still there."""

    async def open_ids(self, org: str) -> list[str]:
        """What is held."""

    async def reservations(self, org: str, ids: list[str]) -> dict[str, StoredReservation]:
        """How these stand."""

    async def standing(self, org: str) -> Standing:
        """How far the rows go, and how far they are sealed."""


@dataclass(slots=True)
class Rebuilt:
    """What was put back.

    Attributes:
        last_seq: the archive's last row.
        adopted: rows that only the store had, archived now.
        contradicted: rows of the store about calls that the archive knows ended: left out.
        counters: how many were made again.
        endings: how many ended reservations are remembered again.
        overrides: how many changes by operators are known again.
    """

    last_seq: int = 0
    adopted: int = 0
    contradicted: int = 0
    counters: int = 0
    endings: int = 0
    overrides: int = 0


class Rebuilder:
    """Makes an org's ledger again in the store."""

    def __init__(
        self,
        ledger: Ledger,
        bookkeeping: Bookkeeping,
        archive: Archive,
        clock: Clock,
        settle_horizon_ms: int,
    ) -> None:
        self._ledger = ledger
        self._bookkeeping = bookkeeping
        self._archive = archive
        self._clock = clock
        self._horizon_ms = settle_horizon_ms

    async def rebuild(self, org: str, *, reason: str) -> Rebuilt:
        """Put everything back that the archive knows, and open the books.

        Raises:
            NothingToRebuildError: the store has all that the archive has.
            RebuildError: rows are written meanwhile, or the archive lacks rows that the store has
                seen archived: what the store shows as spent is all that is known of them.
            StoreError: begin again; until then the books are closed.
        """
        result = Rebuilt()
        async with self._writer() as writer:
            if await self._lacks_what_is_sealed(org):
                raise RebuildError(
                    f"{self._archive.storage.place}: lacks rows of the org '{org}' that were "
                    "archived, so this is an older copy, or another archive: put the right one "
                    "back, or run it where that is; if it is lost for good, --go-on goes on with "
                    "what the store shows"
                )
            books = await self._adopt(org, writer, result)
            await self._restore(org, books, writer, {"rebuilt": reason}, result)
        return result

    async def go_on(self, org: str, *, reason: str) -> Rebuilt:
        """Open the books with what the store still shows as spent; the rest is written off.

        The rows that say so keep the reason, so that books and counters agree. Limits, pauses and
        the memory of what has ended are put back: nothing is charged twice, and nobody let in.
        Where the archive lacks what was archived, the store's own are the later ones, and stay.

        Raises:
            NothingToRebuildError: the store has all that the archive has.
            RebuildError: rows are written meanwhile, or archived by another service.
            StoreError: begin again; until then the books are closed.
        """
        result = Rebuilt()
        async with self._writer() as writer:
            store_is_later = await self._lacks_what_is_sealed(org)
            if store_is_later:
                await self._must_not_be_archived(org)
            books = await self._adopt(org, writer, result)
            await self._write_off(org, books, writer, reason)
            if store_is_later:
                await self._leave_what_is_known(org, books)
            words = {"gone on without": reason}
            await self._restore(org, books, writer, words, result, keep_overrides=store_is_later)
        return result

    async def _lacks_what_is_sealed(self, org: str) -> bool:
        """Whether rows are missing here that the store has seen archived, or are other ones.

        What is trimmed was archived, also where the store has forgotten how far that was.
        """
        standing = await self._ledger.standing(org)
        rows = await self._ledger.rows(org, 0, 1)
        trimmed_seq = rows[0].seq - 1 if rows else standing.last_seq
        through = standing.through_seq
        if max(through, trimmed_seq, standing.archived_seq) > self._archive.last_seq:
            return True
        return bool(through) and self._archive.hash_at(through) != standing.hash

    async def _must_not_be_archived(self, org: str) -> None:
        standing = await self._ledger.standing(org)
        if standing.last_seq and standing.until_ms > self._clock():
            raise RebuildError(
                f"a service with another data_dir archives the rows of the org '{org}', and has "
                "all of them: run it there; if that archive is to be given up, stop the service"
            )

    async def _leave_what_is_known(self, org: str, books: ArchivedBooks) -> None:
        """An ending that the store remembers may have been corrected since it was archived."""
        ids = list(books.endings)
        for at in range(0, len(ids), _ROWS_AT_ONCE):
            for id_ in await self._ledger.reservations(org, ids[at : at + _ROWS_AT_ONCE]):
                del books.endings[id_]

    async def _restore(
        self,
        org: str,
        books: ArchivedBooks,
        writer: ArchiveWriter,
        words: dict[str, str],
        result: Rebuilt,
        *,
        keep_overrides: bool = False,
    ) -> None:
        await self._restore_endings(org, books, result)
        await self._restore_counters(org, books, result)
        if not keep_overrides:
            await self._restore_overrides(org, books, result)
        result.last_seq = writer.last_seq
        await self._open(org, writer, words)

    async def _write_off(
        self, org: str, books: ArchivedBooks, writer: ArchiveWriter, reason: str
    ) -> None:
        """Let the rows say what the counters of the store show, more or less than the archive."""
        at_ms = self._clock()
        counters = await self._counters(org, books, at_ms)
        shown = await self._bookkeeping.counters(
            org, [counter_key_of(org, name) for name in counters]
        )
        for (name, counter), fields in zip(list(counters.items()), shown, strict=True):
            for charged_at_ms, posting in written_off(name, counter, fields, at_ms):
                word = "written off" if posting.change < 0 else "taken over"
                row = Row(
                    writer.last_seq + 1,
                    at_ms,
                    RowOutcome.REPAIR,
                    "books",
                    charged_at_ms=charged_at_ms,
                    postings=(posting,),
                    particulars=json.dumps({word: reason}, separators=(",", ":")),
                )
                writer.append([row])
                books.add(row, is_remembered=False)

    async def _counters(self, org: str, books: ArchivedBooks, at_ms: int) -> dict[str, Counter]:
        """All that the archive knows, and with nothing spent those that only the store has.

        None is forgotten sooner than the store would: one that lasts may be on no row here.
        """
        counters = books.live(at_ms)
        keys = await self._bookkeeping.counter_keys(org)
        ends = await self._bookkeeping.forget_times(org, keys)
        for key, forget_at_ms in zip(keys, ends, strict=True):
            name = counter_name(key)
            counter = books.tally.counters.get(name) or Counter(at_ms + _KEPT_MS)
            counter.forget_at_ms = max(counter.forget_at_ms, forget_at_ms)
            counters[name] = counter
        return counters

    @asynccontextmanager
    async def _writer(self) -> AsyncIterator[ArchiveWriter]:
        """The archive's writer, alone: a service that archives, or another rebuild, is waited for.

        Raises:
            RebuildError: it goes on.
        """
        for _ in range(_TRIES):
            with self._archive.storage.lock() as is_ours:
                if is_ours:
                    yield await asyncio.to_thread(ArchiveWriter, self._archive)
                    return
            await asyncio.sleep(_PAUSE_S)
        raise RebuildError(
            f"{self._archive.storage.place}: another process writes to this archive, a service or "
            "a rebuild: wait for it, and start again"
        )

    async def _adopt(self, org: str, writer: ArchiveWriter, result: Rebuilt) -> ArchivedBooks:
        """Archive what only the store has, close the books, and read all that is archived."""
        standing = await self._ledger.standing(org)
        stream = [row async for row in self._stream(org)]
        last_read = max(standing.last_seq, stream[-1].seq if stream else 0)
        archived = {row.seq: row for row in self._archived(stream)}
        news = [row for row in stream if archived.get(row.seq) != row]
        has_diverged = any(row.seq in archived for row in news)
        if not has_diverged and self._is_whole(standing, stream, last_read):
            raise NothingToRebuildError(
                f"the store has all that the archive of the org '{org}' has: there is nothing to "
                "rebuild; `extauthz audit` compares its counters"
            )
        books, remembered_after_ms = ArchivedBooks(), self._clock() - self._horizon_ms
        open_ids = frozenset(await self._ledger.open_ids(org))
        for row in self._archive.rows():
            is_remembered = row.at_ms > remembered_after_ms or row.id in open_ids
            books.add(row, is_remembered=is_remembered)
        for row in news:
            if row.outcome in (RowOutcome.OPENED, RowOutcome.REPAIR):
                continue
            new = books.news_in(row)
            if new is None:
                result.contradicted += row.outcome is not RowOutcome.OVERRIDE
                continue
            adopted = replace(new, seq=writer.last_seq + 1)
            writer.append([adopted])
            books.add(adopted, is_remembered=True)
            result.adopted += 1
        if not await self._bookkeeping.close(org, last_read):
            raise RebuildError(
                f"rows were written to the books of the org '{org}' meanwhile: stop the services "
                "on this store, and start again"
            )
        result.last_seq = writer.last_seq
        return books

    def _archived(self, stream: Sequence[Row]) -> Iterator[Row]:
        """The archived rows that may be in the store as well."""
        return self._archive.rows(stream[0].seq - 1) if stream else iter(())

    def _is_whole(self, standing: Standing, stream: Sequence[Row], last_read: int) -> bool:
        """Whether the store knows of every row that is archived, and has every one that is not."""
        if standing.behind:
            return False
        through = standing.through_seq
        first = stream[0].seq if stream else last_read + 1
        if not last_read or last_read < self._archive.last_seq or first > through + 1:
            return False
        return not through or self._archive.hash_at(through) == standing.hash

    async def _stream(self, org: str) -> AsyncIterator[Row]:
        after_seq = 0
        while rows := await self._ledger.rows(org, after_seq, _ROWS_AT_ONCE):
            for row in rows:
                yield row
            after_seq = rows[-1].seq

    async def _restore_endings(self, org: str, books: ArchivedBooks, result: Rebuilt) -> None:
        for id_, row in books.endings.items():
            await self._bookkeeping.restore_ended(
                org,
                id_,
                dict(record_fields(org, row)),
                row.at_ms + self._horizon_ms,
                expired=STATES[row.outcome] is State.EXPIRED,
            )
            result.endings += 1

    async def _restore_counters(self, org: str, books: ArchivedBooks, result: Rebuilt) -> None:
        held = await self._held(org, books)
        counters = await self._counters(org, books, self._clock())
        for name, counter in counters.items():
            if width_of(name) is None:
                fields = {"spent": counter.spent}
            else:
                fields = {str(bucket): amount for bucket, amount in counter.buckets.items()}
            fields["held"] = held[name]
            key = counter_key_of(org, name)
            await self._bookkeeping.restore_counter(org, key, fields, counter.forget_at_ms)
            result.counters += 1

    async def _held(self, org: str, books: ArchivedBooks) -> Mapping[str, int]:
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

    async def _restore_overrides(self, org: str, books: ArchivedBooks, result: Rebuilt) -> None:
        """What operators had changed holds as it would, had nothing been lost."""
        book, now_ms = OverrideBook(), self._clock()
        for row in books.overrides:
            command = self._override_in(org, row)
            book.ids.pop(command.id, None)  # it was forgotten, or there would not be this row
            result.overrides += book.apply(command) is Applied.APPLIED
            if command.forget_at_ms > now_ms:
                await self._bookkeeping.restore_override_id(
                    org, command.id, command.content, command.forget_at_ms
                )
        await self._bookkeeping.restore_overrides(org, book.at(now_ms))

    def _override_in(self, org: str, row: Row) -> Override:
        words = json.loads(row.particulars)
        until_ms = int(words["until_ms"]) if "until_ms" in words else None
        end_ms = row.at_ms + NEVER_MS if until_ms is None else until_ms
        return Override(
            row.id,
            org,
            row.at_ms,
            Change(words["change"]),
            words["target"],
            end_ms + self._horizon_ms,
            int(words.get("amount", "0")),
            until_ms,
            words.get("note", ""),
            words.get("key", ""),
        )

    async def _open(self, org: str, writer: ArchiveWriter, words: dict[str, str]) -> None:
        particulars = json.dumps(words, separators=(",", ":"))
        await self._bookkeeping.restore_archived(org, writer.last_seq, writer.last_hash)
        await self._bookkeeping.open(org, self._clock(), writer.last_seq + 1, particulars)
