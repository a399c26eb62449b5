"""Reading an archive: as far as its head says, and no line that does not follow from its chain."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from extauthz.archive import checkpoint
from extauthz.archive.chain import Chain
from extauthz.archive.directory import ArchiveStorage
from extauthz.archive.errors import ArchiveError
from extauthz.archive.line import encode
from extauthz.archive.segment import Segment, Step, Walk
from extauthz.ledger import Row, Tally

HEAD = "HEAD"
_HEAD_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """How far an archive goes: what comes after it was never confirmed.

    Attributes:
        seq: the last row; 0 before the first.
        hash: what its line carries.
    """

    seq: int
    hash: bytes

    def text(self, chain: Chain) -> bytes:
        """The head as a file. Its seal keeps whoever lacks the key from setting it back."""
        fields = {"seq": self.seq, "hash": self.hash.hex(), "is_keyed": chain.key is not None}
        return encode({**fields, "seal": self._seal(chain)}).encode() + b"\n"

    @classmethod
    def read(cls, text: bytes, chain: Chain) -> "Head":
        """A head from its file.

        Raises:
            ValueError: it is none, it was changed, or the key is another one.
        """
        try:
            fields = json.loads(text)
            is_keyed = fields["is_keyed"]
            head = cls(int(fields["seq"]), bytes.fromhex(fields["hash"]))
        except (KeyError, TypeError, RecursionError, ValueError) as error:
            raise ValueError("cannot be read: it was changed") from error
        if is_keyed is not (chain.key is not None):
            written, given = ("with", "none is") if is_keyed else ("without", "one is")
            raise ValueError(f"was written {written} a key, and {given} given: see books.key")
        if head.text(chain) != text:
            raise ValueError("was changed" + (", or the key is another one" if is_keyed else ""))
        return head

    def _seal(self, chain: Chain) -> str:
        return chain.link(self.hash, f"head {self.seq}".encode()).hex()


@dataclass(frozen=True, slots=True)
class Archive:
    """The archived rows of one org, in bounded memory; safe beside the service that writes them.

    Every method may raise `ArchiveError`: a file cannot be read, or is not what was written.
    """

    storage: ArchiveStorage
    chain: Chain

    def head(self) -> Head | None:
        """How far it goes now; None where nothing was ever archived."""
        names = self.storage.names()
        if HEAD not in names:
            if names:
                raise ArchiveError(f"{self.path(HEAD)}: is missing, and there are rows")
            return None
        try:
            return Head.read(self.storage.read(HEAD, 0, _HEAD_BYTES_MAX), self.chain)
        except ValueError as error:
            raise ArchiveError(f"{self.path(HEAD)}: {error}") from error

    @property
    def last_seq(self) -> int:
        """The number of the last row; 0 if there is none."""
        head = self.head()
        return head.seq if head else 0

    @property
    def last_hash(self) -> str:
        """The hash of the last row's line; nothing if there is none."""
        head = self.head()
        return head.hash.hex() if head and head.seq else ""

    def segments(self) -> list[Segment]:
        """All segments, in order."""
        found = (Segment.named(name) for name in self.storage.names())
        return [segment for segment in found if segment is not None]

    def rows(self, after_seq: int = 0) -> Iterator[Row]:
        """The rows after a number, up to the head as it is when the first one is read."""
        for step in self.steps(after_seq):
            if step.row and step.row.seq > after_seq:
                yield step.row

    def hash_at(self, seq: int) -> str | None:
        """What the line of a row carries; None if the row is not here."""
        for step in self.steps(seq - 1) if seq > 0 else ():
            if step.row and step.row.seq == seq:
                return step.hash.hex()
        return None

    def latest_checkpoint(self, before_seq: int | None = None) -> tuple[Tally, int]:
        """What was spent up to the last checkpoint at or before a row (or the head), and its row.

        An empty tally and 0 where there is none: all rows have to be added up.
        """
        head = self.head()
        limit = head.seq if head else 0
        if before_seq is not None:
            limit = min(limit, before_seq)
        for segment in reversed(self.segments()):
            if 1 < segment.first_seq <= limit + 1:
                tally = self.checkpoint_of(segment)
                return tally, tally.last_seq
        return Tally(), 0

    def checkpoint_of(self, segment: Segment) -> Tally:
        """What was spent before a segment; proven by the segment's first line."""
        if segment.first_seq == 1:
            return Tally()
        walk = Walk.starting_at(self.storage, self.chain, segment)
        step = next(walk.through(segment), None)
        if step is None or step.fault or walk.header is None:
            raise self.wrong(segment, step)
        path = self.path(segment.checkpoint_name)
        text = self.file(segment.checkpoint_name)
        if checkpoint.digest_of(text) != walk.header.checkpoint:
            raise ArchiveError(f"{path}: was changed: {segment.name} says another hash of it")
        try:
            tally = checkpoint.tally_in(text)
        except ValueError as error:
            raise ArchiveError(f"{path}: {error}") from error
        if tally.last_seq != segment.first_seq - 1:
            raise ArchiveError(f"{path}: is the checkpoint of row {tally.last_seq}")
        return tally

    def steps(self, after_seq: int) -> Iterator[Step]:
        """The lines from the segment of the row after a number up to the head, each proven."""
        head = self.head()
        if head is None or after_seq >= head.seq:
            return
        segments = self.segments()
        start = max((n for n, s in enumerate(segments) if s.first_seq <= after_seq + 1), default=0)
        if not segments or segments[start].first_seq > after_seq + 1:
            raise ArchiveError(f"{self.storage.place}: row {after_seq + 1} is missing")
        walk = Walk.starting_at(self.storage, self.chain, segments[start])
        for segment in segments[start:]:
            for step in walk.through(segment):
                if step.fault:
                    raise self.wrong(segment, step)
                yield step
                if step.row and step.row.seq == head.seq:
                    if step.hash != head.hash:
                        raise ArchiveError(f"{self.path(HEAD)}: has another hash of row {head.seq}")
                    return
        raise ArchiveError(
            f"{self.storage.place}: ends at row {walk.next_seq - 1}, and its head is {head.seq}: "
            "its end is missing"
        )

    def file(self, name: str) -> bytes:
        """A whole file."""
        parts, offset = [], 0
        while part := self.storage.read(name, offset, 1 << 20):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def path(self, name: str) -> str:
        """How errors name a file."""
        return f"{self.storage.place}/{name}"

    def wrong(self, segment: Segment, step: Step | None) -> ArchiveError:
        """A line that is not what was written."""
        if step is None:
            return ArchiveError(f"{self.path(segment.name)}: is empty")
        return ArchiveError(
            f"{self.path(segment.name)}, line {step.line} (row {step.seq}): {step.fault}"
        )
