"""Adding rows to an archive: nothing is lost or doubled, whenever a crash comes.

The order is: the rows (fsync), then the head (replaced whole). So the store, which is told after
both, never counts a row as archived that is not on disk. Whole lines after the head were written by
a process that died in between; they are kept, and its last line is cut off if it has no end.
"""

from collections.abc import Sequence

from extauthz.archive import checkpoint
from extauthz.archive.archive import HEAD, Archive, Head
from extauthz.archive.chain import with_hash
from extauthz.archive.errors import ArchiveError
from extauthz.archive.line import line_of
from extauthz.archive.segment import Header, Segment, Walk
from extauthz.ledger import Row, RowGapError, Tally

ROWS_PER_SEGMENT = 10_000
"""And so per checkpoint: an audit adds up at most so many rows of the archive."""


class ArchiveWriter:
    """The one writer of an archive, under its lock; after an error, open another one."""

    def __init__(self, archive: Archive, *, rows_per_segment: int = ROWS_PER_SEGMENT) -> None:
        """Find the end of an archive, and mend what a crash has left there.

        Raises:
            ArchiveError: its end is missing, or is not what was written.
        """
        self._archive, self._storage, self._chain = archive, archive.storage, archive.chain
        self._rows_per_segment = rows_per_segment
        self._segment: Segment | None = None
        self._tally = Tally()
        self._at_ms = 0
        head = archive.head()
        if head is None:
            head = Head(0, self._chain.origin)
            self._storage.replace(HEAD, head.text(self._chain))
        self._head = head
        self._hash = head.hash
        self._find_end()

    @property
    def archive(self) -> Archive:
        """What it writes to, for reading."""
        return self._archive

    @property
    def last_seq(self) -> int:
        """The last row."""
        return self._tally.last_seq

    @property
    def last_hash(self) -> str:
        """What the line of the last row carries."""
        return self._hash.hex() if self.last_seq else ""

    @property
    def is_current(self) -> bool:
        """Whether nobody else has written since; it is not used again where somebody has.

        Raises:
            ArchiveError: the head cannot be read.
        """
        return self._archive.head() == self._head

    def append(self, rows: Sequence[Row]) -> None:
        """Add the next rows; they are on disk when this returns.

        Raises:
            ArchiveError: a row is missing, or the disk does not take them.
        """
        left = list(rows)
        while left:
            room = self._room()
            self._append(left[:room] if room else left[: self._rows_per_segment], new=not room)
            left = left[room or self._rows_per_segment :]
        self._confirm()

    def _append(self, rows: Sequence[Row], *, new: bool) -> None:
        lines = []
        segment = self._segment
        if new or segment is None:
            segment = Segment(self.last_seq + 1)
            lines.append(self._linked(self._header(segment).body()))
        for row in rows:
            try:
                self._tally.add(row)
            except RowGapError as error:
                raise ArchiveError(f"{self._storage.place}: {error}") from error
            self._at_ms = row.at_ms
            lines.append(self._linked(line_of(row)))
        data = b"".join(lines)
        if segment is self._segment:
            self._storage.append(segment.name, data)
        else:
            self._storage.replace(segment.name, data)
            self._segment = segment

    def _header(self, segment: Segment) -> Header:
        """The first line of a new segment, with its checkpoint on disk."""
        digest = None
        if self.last_seq:
            self._tally.forget(self._at_ms)
            text = checkpoint.text_of(self._tally)
            self._storage.replace(segment.checkpoint_name, text)
            digest = checkpoint.digest_of(text)
        return Header(segment.first_seq, self._chain.org, self._hash.hex(), digest)

    def _linked(self, body: bytes) -> bytes:
        self._hash = self._chain.link(self._hash, body)
        return with_hash(body, self._hash)

    def _confirm(self) -> None:
        head = Head(self.last_seq, self._hash)
        if head != self._head:
            self._storage.replace(HEAD, head.text(self._chain))
            self._head = head

    def _room(self) -> int:
        """How many more rows go into the segment."""
        if self._segment is None:
            return 0
        return max(0, self._rows_per_segment - (self.last_seq - self._segment.first_seq + 1))

    def _find_end(self) -> None:
        """Walk from the segment of the head to the last line."""
        segments = self._archive.segments()
        start = max(
            (n for n, segment in enumerate(segments) if segment.first_seq <= self._head.seq),
            default=0,
        )
        if segments[start:]:
            first = segments[start]
            self._tally = self._archive.checkpoint_of(first)
            walk = Walk.starting_at(self._storage, self._chain, first)
            for segment in segments[start:]:
                self._walk(walk, segment)
        if self.last_seq < self._head.seq:
            raise ArchiveError(
                f"{self._storage.place}: ends at row {self.last_seq}, and its head is "
                f"{self._head.seq}: its end is missing"
            )
        self._confirm()

    def _walk(self, walk: Walk, segment: Segment) -> None:
        end = 0
        if self._segment is not None:
            self._tally.forget(self._at_ms)  # as before each checkpoint, so that they are the same
        for step in walk.through(segment):
            if step.is_torn and walk.next_seq > self._head.seq and end:
                self._storage.cut(segment.name, end)
                break
            if step.fault:
                raise self._archive.wrong(segment, step)
            end = step.end
            if step.row:
                self._tally.add(step.row)
                self._at_ms = step.row.at_ms
                if step.seq == self._head.seq and step.hash != self._head.hash:
                    raise ArchiveError(
                        f"{self._archive.path(HEAD)}: has another hash of row {step.seq}"
                    )
            self._hash = step.hash
        self._segment = segment
