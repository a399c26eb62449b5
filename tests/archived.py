"""Rows to archive, and archives of them, for every suite that needs some."""

from pathlib import Path

from extauthz.archive import Archive, ArchiveDirectory, ArchiveWriter, Chain
from extauthz.ledger import Posting, Row, RowOutcome

ORG = "acme"
KEY = b"a key that is kept somewhere else"


def a_row(seq: int, cost: int = 0, at_ms: int | None = None) -> Row:
    """A settlement, on a counter of its minute (a minute has five rows) and on a rolling one."""
    at_ms = 12_000 * seq if at_ms is None else at_ms
    cost = cost or 10 * seq
    return Row(
        seq,
        at_ms,
        RowOutcome.SETTLED,
        f"call-{seq}",
        cost_nanousd=cost,
        charged_at_ms=at_ms,
        postings=(
            Posting(f"agent/bot/minute/usd:{at_ms // 60_000}", cost + 1, cost, 0, at_ms + 120_000),
            Posting("agent/bot/rolling-1h/usd:rolling-37916", 1, 1, 0, at_ms + 7_200_000),
        ),
        particulars='{"agent":"bot","model":"gpt-4o"}',
    )


def some_rows(first: int, last: int) -> list[Row]:
    return [a_row(seq) for seq in range(first, last + 1)]


def archive_in(directory: Path, key: bytes | None = None) -> Archive:
    return Archive(ArchiveDirectory(directory), Chain(ORG, key))


def archived(directory: Path, last: int = 25, key: bytes | None = None) -> Archive:
    """An archive with so many rows, ten in each segment, written a few at a time."""
    archive = archive_in(directory, key)
    writer = ArchiveWriter(archive, rows_per_segment=10)
    for first in range(1, last + 1, 4):
        writer.append(some_rows(first, min(first + 3, last)))
    return archive
