"""Reading an org's books in order: what the store has, and from the archive what it has no more.

Sealed rows are trimmed from the store while somebody reads, the last one too. So wherever the store
has not the next row, the archive may by now; only then are the rows at an end, or some missing.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from extauthz.errors import OperatorError
from extauthz.ledger import Row
from extauthz.store.base import LedgerStore

_PAGE_ROWS = 500


class BooksGapError(OperatorError):
    """Rows stand neither in the archive nor in the store; the text names them."""


class RowArchive(Protocol):
    """The sealed rows of one org."""

    def rows(self, after_seq: int = 0) -> Iterator[Row]:
        """Those after a number, in order."""


async def all_rows(
    archive: RowArchive | None, store: LedgerStore, org: str, after_seq: int = 0
) -> AsyncIterator[Row]:
    """Every row after a number that there is by now, in order, each once.

    Raises:
        BooksGapError: a row is missing.
        StoreUnavailableError: the store does not answer.
    """
    last_seq = after_seq
    while True:
        page = await store.rows(org, last_seq, _PAGE_ROWS)
        is_whole = bool(page) and page[0].seq == last_seq + 1
        found = page if is_whole else archive.rows(last_seq) if archive else ()
        before = last_seq
        for row in found:
            _must_follow(last_seq, row.seq)
            yield row
            last_seq = row.seq
        if last_seq > before:
            continue
        if page:
            _must_follow(last_seq, page[0].seq)
        return


async def last_seq_of(store: LedgerStore, org: str) -> int:
    """The number of the last row that the store has; 0: it has none."""
    beyond = 1
    while await store.rows(org, beyond - 1, 1):
        beyond *= 2
    first, last = beyond // 2, beyond - 1
    # Between these there is a last one: after it nothing comes, after those before it something.
    while first < last:
        middle = (first + last) // 2
        if await store.rows(org, middle, 1):
            first = middle + 1
        else:
            last = middle
    return first


def _must_follow(last_seq: int, seq: int) -> None:
    if seq != last_seq + 1:
        raise BooksGapError(
            f"the rows {last_seq + 1} to {seq - 1} of the books are neither in the store nor in "
            "data_dir/books: read them where the service keeps its data_dir"
        )
