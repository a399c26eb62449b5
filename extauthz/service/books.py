"""The books of an org from their first row to their last: the archive, then the store."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice

from extauthz.archive import Archive, ArchiveError
from extauthz.ledger import Row
from extauthz.store.base import LedgerStore

_ROWS_AT_ONCE = 500


async def all_rows(
    archive: Archive, store: LedgerStore, org: str, after_seq: int = 0
) -> AsyncIterator[Row]:
    """Every row after a number, without a gap, in bounded memory; also while rows are archived.

    Raises:
        ArchiveError: the archive is not what was written, or rows are in neither place.
        StoreUnavailableError: the store is away; the archived rows have come by then.
    """
    while True:
        archived = archive.rows(after_seq)
        while rows := await asyncio.to_thread(_some, archived):
            for row in rows:
                yield row
            after_seq = rows[-1].seq
        async for row in _unsealed(store, org, after_seq):
            yield row
            after_seq = row.seq
        if not await _was_sealed_meanwhile(archive, store, org, after_seq):
            return


def _some(rows: Iterator[Row]) -> list[Row]:
    return list(islice(rows, _ROWS_AT_ONCE))


async def _unsealed(store: LedgerStore, org: str, after_seq: int) -> AsyncIterator[Row]:
    """Rows in the store that follow a number; ends where one was trimmed."""
    while rows := await store.rows(org, after_seq, _ROWS_AT_ONCE):
        for row in rows:
            if row.seq != after_seq + 1:
                return
            yield row
            after_seq = row.seq


async def _was_sealed_meanwhile(
    archive: Archive, store: LedgerStore, org: str, after_seq: int
) -> bool:
    """Whether rows after a number have left the store for the archive."""
    standing = await store.standing(org)
    if standing.through_seq <= after_seq:
        rest = await store.rows(org, after_seq, 1)
        if not rest or rest[0].seq == after_seq + 1:
            return False
        # The next row has left the store; if that was just now, the store says so by now.
        standing = await store.standing(org)
        if standing.through_seq <= after_seq:
            raise ArchiveError(f"row {after_seq + 1} of the org '{org}' is in no place")
    if await asyncio.to_thread(lambda: archive.last_seq) <= after_seq:
        raise ArchiveError(
            f"{archive.storage.place}: ends at row {after_seq}, and the store has sealed rows up "
            f"to {standing.through_seq}: they are in another archive, or its end is missing"
        )
    return True
