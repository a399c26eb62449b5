"""The rows of an org for an audit: the archive's last checkpoint, and every row after it."""

from collections.abc import AsyncIterator

from extauthz.archive import Archive
from extauthz.ledger import Row, Tally
from extauthz.service.books import all_rows
from extauthz.store.base import LedgerStore


class ArchivedPast:
    """What the archive has, then what the store still has."""

    def __init__(self, archive: Archive, store: LedgerStore, org: str) -> None:
        self._archive, self._store, self._org = archive, store, org

    def checkpoint(self) -> Tally:
        """What is added up already.

        Raises:
            ArchiveError: the archive is not what was written.
        """
        return self._archive.latest_checkpoint()[0]

    def rows(self, after_seq: int) -> AsyncIterator[Row]:
        """Every row after a number, in order, up to the last one there is."""
        return all_rows(self._archive, self._store, self._org, after_seq)
