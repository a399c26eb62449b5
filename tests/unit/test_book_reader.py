"""Whoever reads the books gets every row once, even while rows move into the archive."""

import pytest
from made_rows import Shelf, settled

from extauthz.ledger import Row
from extauthz.service.book_reader import BooksGapError, all_rows, last_seq_of
from extauthz.store.memory import MemoryStore

ORG = "default"


def kept(store: MemoryStore, first: int, last: int) -> list[Row]:
    """The store has these rows from now on."""
    rows = [settled(seq, seq) for seq in range(first, last + 1)]
    books = store._ledgers[ORG].books
    books.rows, books.last_seq = rows, last
    return rows


async def seqs(archive: Shelf | None, store: MemoryStore, after_seq: int = 0) -> list[int]:
    return [row.seq async for row in all_rows(archive, store, ORG, after_seq)]


async def test_archived_rows_come_first_and_none_comes_twice():
    store = MemoryStore()
    rows = kept(store, 1, 9)
    store._ledgers[ORG].books.trim(4)

    assert await seqs(Shelf(rows[:6]), store) == list(range(1, 10))
    assert await seqs(Shelf(rows[:6]), store, 5) == [6, 7, 8, 9]
    assert await seqs(Shelf(rows), store, 9) == []


async def test_rows_are_read_where_nothing_was_ever_archived():
    store = MemoryStore()
    assert await seqs(None, store) == []
    kept(store, 1, 1203)
    assert await seqs(None, store) == list(range(1, 1204))


@pytest.mark.parametrize("at", [1, 499, 500, 501, 900])
@pytest.mark.parametrize("sealed", [500, 700, 1200])
async def test_rows_that_are_sealed_and_trimmed_meanwhile_are_neither_lost_nor_doubled(at, sealed):
    store = MemoryStore()
    rows = kept(store, 1, 1200)
    archive, found = Shelf(), []

    async for row in all_rows(archive, store, ORG):
        found.append(row.seq)
        if row.seq == at:
            archive.sealed = rows[:sealed]
            store._ledgers[ORG].books.trim(sealed)

    assert found == list(range(1, 1201))


async def test_what_is_sealed_between_archive_and_store_is_not_missed():
    store = MemoryStore()
    rows = kept(store, 1, 20)
    archive = Shelf(rows[:5])

    class Moved(MemoryStore):
        async def rows(self, org: str, after_seq: int, count: int) -> list[Row]:
            archive.sealed = rows[:15]
            store._ledgers[ORG].books.trim(15)
            return await store.rows(org, after_seq, count)

    assert await seqs(archive, Moved()) == list(range(1, 21))


async def test_rows_that_are_nowhere_are_named():
    store = MemoryStore()
    rows = kept(store, 1, 9)
    store._ledgers[ORG].books.trim(6)

    for archive in (None, Shelf(rows[:3]), Shelf(rows[3:5])):
        with pytest.raises(BooksGapError, match=r"rows \d to \d .* data_dir"):
            await seqs(archive, store)


@pytest.mark.parametrize("last", [0, 1, 2, 3, 4, 7, 8, 9, 1000])
async def test_the_last_row_is_found(last):
    store = MemoryStore()
    kept(store, 1, last)
    store._ledgers[ORG].books.trim(last // 2)
    assert await last_seq_of(store, ORG) == last
