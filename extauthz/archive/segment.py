"""A segment: one file, whose first line says where it belongs, and whose others are rows."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from extauthz.archive.chain import Chain, without_hash
from extauthz.archive.directory import ArchiveStorage
from extauthz.archive.line import encode, row_in
from extauthz.ledger import Row

_DIGITS = 16
_NAME = re.compile(rf"([0-9]{{{_DIGITS}}})\.jsonl")
_CHECKPOINT = re.compile(rf"([0-9]{{{_DIGITS}}})\.checkpoint")
_CHUNK_BYTES = 256 * 1024
_LINE_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment by the number of its first row, from which its files have their names."""

    first_seq: int

    @property
    def name(self) -> str:
        """The file of its rows."""
        return f"{self.first_seq:0{_DIGITS}d}.jsonl"

    @property
    def checkpoint_name(self) -> str:
        """The file of what was spent before its first row."""
        return f"{self.first_seq:0{_DIGITS}d}.checkpoint"

    @classmethod
    def named(cls, name: str) -> "Segment | None":
        """The segment of this name; None if it names none."""
        found = _NAME.fullmatch(name)
        return cls(int(found[1])) if found else None

    @classmethod
    def of_checkpoint(cls, name: str) -> "Segment | None":
        """The segment whose checkpoint has this name; None if none has."""
        found = _CHECKPOINT.fullmatch(name)
        return cls(int(found[1])) if found else None


@dataclass(frozen=True, slots=True)
class Header:
    """The first line: it is a link of the chain as every other, and binds the checkpoint to it.

    Attributes:
        first_seq: the number of the first row that follows.
        org: whose books these are.
        previous: the hash of the last line of the segment before.
        checkpoint: the SHA-256 of the checkpoint; nothing in the first segment, which needs none.
    """

    first_seq: int
    org: str
    previous: str
    checkpoint: str | None

    def body(self) -> bytes:
        """The line without its hash."""
        fields = {
            "segment": self.first_seq,
            "org": self.org,
            "previous": self.previous,
            "checkpoint": self.checkpoint,
        }
        return encode(fields).encode()

    @classmethod
    def read(cls, body: bytes) -> "Header":
        """A header as it stands there.

        Raises:
            ValueError: it is none.
        """
        try:
            fields = json.loads(body)
            first, org = fields["segment"], fields["org"]
            header = cls(first, org, fields["previous"], fields["checkpoint"])
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError("is not the first line of a segment") from error
        if header.body() != body:
            raise ValueError("is not written as first lines are written here")
        return header


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a segment, as a walk finds it.

    Attributes:
        line: its number in the file, from 1.
        end: where the next one begins.
        seq: the number of its row; before a row that cannot be read, the one that is expected.
        row: nothing in the first line, and where it cannot be read.
        hash: what it carries.
        fault: what is wrong with it.
        is_torn: it has no end; a crash can leave such a line.
    """

    line: int
    end: int
    seq: int
    row: Row | None = None
    hash: bytes = b""
    fault: str | None = None
    is_torn: bool = False


CUT_OFF = "is cut off"
"""The fault of a line without an end: the last one, which may just be being written."""


@dataclass(slots=True)
class Walk:
    """Goes from line to line and sees whether each follows from the one before.

    After a fault it goes on from what the line itself says, so that each fault is told once.

    Attributes:
        next_seq: the row that must come next.
        hash: of the last line; None where nothing is known of it.
        header: of the segment that is gone through.
    """

    storage: ArchiveStorage
    chain: Chain
    next_seq: int = 1
    hash: bytes | None = None
    header: Header | None = None

    @classmethod
    def starting_at(cls, storage: ArchiveStorage, chain: Chain, segment: Segment) -> "Walk":
        """A walk that begins with a segment; what its first line follows is known of the first."""
        is_first = segment.first_seq == 1
        return cls(storage, chain, segment.first_seq, chain.origin if is_first else None)

    def through(self, segment: Segment) -> Iterator[Step]:
        """The lines of a segment, the first one included."""
        self.header = None
        for number, (line, end) in enumerate(_lines(self.storage, segment.name), 1):
            if not line.endswith(b"\n") or b"\0" in line:
                fault = "holds zero bytes" if line.endswith(b"\n") else CUT_OFF
                yield Step(number, end, self.next_seq, fault=fault, is_torn=True)
                return
            yield self._step(segment, number, end, line[:-1])

    def _step(self, segment: Segment, number: int, end: int, line: bytes) -> Step:
        previous, self.hash = self.hash, None
        fault, row, expected = None, None, self.next_seq
        try:
            body, self.hash = without_hash(line)
            if number == 1:
                self.header = Header.read(body)
                fault = self._misplaced(self.header, segment, previous)
                self.next_seq = segment.first_seq
                previous = previous or bytes.fromhex(self.header.previous)
            else:
                row = row_in(body)
                fault = _out_of_order(row.seq, expected)
                self.next_seq = row.seq + 1
        except ValueError as error:
            if number > 1:
                self.next_seq += 1
            return Step(number, end, expected, None, self.hash or b"", str(error))
        seq = row.seq if row else self.next_seq
        if fault is None and previous and self.chain.link(previous, body) != self.hash:
            fault = "was changed: its hash does not follow from it and the line before"
        return Step(number, end, seq, row, self.hash, fault)

    def _misplaced(self, header: Header, segment: Segment, previous: bytes | None) -> str | None:
        if header.org != self.chain.org:
            return f"begins a segment of the org '{header.org}'"
        if header.first_seq != segment.first_seq:
            return f"begins segment {header.first_seq}, which is not the file's name"
        if header.first_seq != self.next_seq:
            return _out_of_order(header.first_seq, self.next_seq)
        if previous and header.previous != previous.hex():
            return "does not follow from the last line of the segment before"
        return None


def _out_of_order(seq: int, expected: int) -> str | None:
    if seq == expected:
        return None
    if seq < expected:
        return f"row {seq} stands in the place of row {expected}"
    missing = f"row {expected} is" if seq == expected + 1 else f"rows {expected} to {seq - 1} are"
    return f"{missing} missing before row {seq}"


def _lines(storage: ArchiveStorage, name: str) -> Iterator[tuple[bytes, int]]:
    """Each line with its end (but for one that is cut off), and where the next one begins."""
    offset, at, rest = 0, 0, b""
    while chunk := storage.read(name, offset, _CHUNK_BYTES):
        offset += len(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            at += len(line) + 1
            yield line + b"\n", at
        if len(rest) > _LINE_BYTES_MAX:  # no row is; reading on would only fill the memory
            break
    if rest:
        yield rest, at
