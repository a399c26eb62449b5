"""The archive: an org's rows for good, as lines of JSON that are chained by hashes.

The store keeps only the rows that are not archived yet. `Archive` reads and verifies what is kept,
`ArchiveWriter` adds to it. `docs/books.md` says what stands where, and what a chain can prove.
"""

from extauthz.archive.archive import Archive, Head
from extauthz.archive.chain import Chain
from extauthz.archive.directory import ArchiveDirectory, ArchiveStorage
from extauthz.archive.errors import ArchiveError, BehindError
from extauthz.archive.line import line_of, row_in
from extauthz.archive.segment import Segment
from extauthz.archive.verify import Finding, Verification, verify
from extauthz.archive.writer import ArchiveWriter

__all__ = [
    "Archive",
    "ArchiveDirectory",
    "ArchiveError",
    "ArchiveStorage",
    "ArchiveWriter",
    "BehindError",
    "Chain",
    "Finding",
    "Head",
    "Segment",
    "Verification",
    "line_of",
    "row_in",
    "verify",
]
