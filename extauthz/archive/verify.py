"""Proving a whole archive: each line, each checkpoint, the head, and that nothing else is there."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from extauthz.archive import checkpoint
from extauthz.archive.archive import HEAD, Archive, Head
from extauthz.archive.errors import ArchiveError
from extauthz.archive.segment import CUT_OFF, Segment, Step, Walk
from extauthz.ledger import Endings, RowGapError, Tally

FINDINGS_MAX = 100
"""What more there is says nothing new, and each costs memory."""

_TOLD_MS = 35 * 86_400_000
"""What was charged twice before that counts in no window any more, but for `total` and the year;
and as no row is ever taken back, it would be told for good."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not what was written, and where."""

    file: str
    what: str
    line: int | None = None
    seq: int | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place} (row {self.seq}): {self.what}" if self.seq else f"{place}: {self.what}"


@dataclass(slots=True)
class Verification:
    """What was found.

    Attributes:
        findings: in the order of the files; none in an archive that is what was written.
        ended_twice: calls with two endings, so charged twice, within the last 35 days of the rows:
            the archive is what was written all the same. At most `FINDINGS_MAX`, the last ones.
        has_more: there are more than are listed.
        head: how far the archive goes, by its own account.
        rows: how many were read.
        last_seq: the last of them.
        unconfirmed_rows: so many come after the head: written as the service died, or added.
        segments: how many there are.
        change_nanousd: what all rows add to what was spent.
        hash_of: the hashes of the rows that were asked for.
    """

    findings: list[Finding] = field(default_factory=list)
    ended_twice: list[Finding] = field(default_factory=list)
    has_more: bool = False
    head: Head | None = None
    rows: int = 0
    last_seq: int = 0
    unconfirmed_rows: int = 0
    segments: int = 0
    change_nanousd: int = 0
    hash_of: dict[int, str] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Note a finding, if there are not too many."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)
        else:
            self.has_more = True


def verify(archive: Archive, *, known_seqs: tuple[int, ...] = ()) -> Verification:
    """Read all of an archive, in bounded memory.

    Args:
        archive: what to prove.
        known_seqs: rows whose hashes are known from elsewhere; see `Verification.hash_of`.
    """
    return _Verifier(archive, frozenset(known_seqs)).run()


class _Verifier:
    def __init__(self, archive: Archive, known_seqs: frozenset[int]) -> None:
        self._archive, self._known_seqs = archive, known_seqs
        self._found = Verification()
        self._tally: Tally | None = Tally()
        self._at_ms = 0
        self._endings = Endings()
        self._ended_twice: deque[tuple[int, Finding]] = deque(maxlen=FINDINGS_MAX)
        self._walk = Walk(archive.storage, archive.chain, hash=archive.chain.origin)

    def run(self) -> Verification:
        found = self._found
        try:
            found.head = self._archive.head()
        except ArchiveError as error:
            found.add(self._told(HEAD, str(error)))
        segments = self._archive.segments()
        found.segments = len(segments)
        for segment in segments:
            self._segment(segment, is_last=segment == segments[-1])
        self._end(segments)
        told_from_ms = self._at_ms - _TOLD_MS
        found.ended_twice = [what for at_ms, what in self._ended_twice if at_ms >= told_from_ms]
        # After the walk: what a service has begun meanwhile is no stranger.
        for name in self._strangers():
            found.add(Finding(name, "does not belong to the archive"))
        return found

    def _segment(self, segment: Segment, *, is_last: bool) -> None:
        if self._tally is not None:
            self._tally.forget(self._at_ms)
        step = None
        for step in self._walk.through(segment):
            self._step(segment, step, is_last=is_last)
        if step is None:
            self._found.add(Finding(segment.name, "is empty"))

    def _step(self, segment: Segment, step: Step, *, is_last: bool) -> None:
        head = self._found.head
        is_after_head = head is None or step.seq > head.seq
        if step.fault == CUT_OFF and is_last and is_after_head:
            return  # a crash, or a line that is just being written
        if step.fault:
            # A missing or changed row makes every later sum another one: that says nothing new.
            self._tally = None if step.line > 1 or self._tally_is_off(step) else self._tally
            self._found.add(Finding(segment.name, step.fault, step.line, step.seq))
        if step.line == 1:
            self._checkpoint(segment)
        if step.row is None:
            return
        self._found.rows += 1
        self._found.last_seq = step.seq
        self._found.unconfirmed_rows += is_after_head
        self._found.change_nanousd += step.row.change_nanousd
        self._at_ms = step.row.at_ms
        if step.fault is None and self._endings.is_second(step.row):
            what = f"the call {step.row.id} has ended before"
            told = Finding(segment.name, what, step.line, step.seq)
            self._ended_twice.append((step.row.at_ms, told))
        if step.seq in self._known_seqs:
            self._found.hash_of[step.seq] = step.hash.hex()
        if head and step.seq == head.seq and step.hash != head.hash:
            self._found.add(Finding(HEAD, f"has another hash than line {step.line} of "
                                    f"{segment.name}", seq=head.seq))  # fmt: skip
        if self._tally is not None:
            try:
                self._tally.add(step.row)
            except RowGapError:
                self._tally = None

    def _tally_is_off(self, step: Step) -> bool:
        return self._tally is not None and self._tally.last_seq != step.seq - 1

    def _checkpoint(self, segment: Segment) -> None:
        """A checkpoint is what the first line says it is, and what the rows before it add up to."""
        header, name = self._walk.header, segment.checkpoint_name
        if header is None:
            return
        if header.checkpoint is None:
            if segment.first_seq > 1:
                self._found.add(Finding(segment.name, "names no checkpoint", 1))
            return
        try:
            text = self._archive.file(name)
        except ArchiveError as error:
            self._found.add(self._told(name, str(error)))
            return
        if checkpoint.digest_of(text) != header.checkpoint:
            what = f"was changed: {segment.name} says another hash of it"
            self._found.add(Finding(name, what, seq=segment.first_seq - 1))
        elif self._tally is not None and text != checkpoint.text_of(self._tally):
            what = "is not what the rows before it add up to"
            self._found.add(Finding(name, what, seq=segment.first_seq - 1))

    def _end(self, segments: list[Segment]) -> None:
        head, last = self._found.head, self._walk.next_seq - 1
        if head and last < head.seq:
            name = segments[-1].name if segments else self._archive.storage.place
            self._found.add(Finding(name, f"the archive ends at row {last}, and its head is row "
                                    f"{head.seq}: its end is missing", seq=last))  # fmt: skip

    def _strangers(self) -> Iterator[str]:
        names = self._archive.storage.names()
        for name in names:
            if name == HEAD or Segment.named(name):
                continue
            segment = Segment.of_checkpoint(name)
            # One without its segment is that of the next one, which a crash has kept from coming.
            if segment is None or (
                segment.name not in names and segment.first_seq != self._walk.next_seq
            ):
                yield name

    def _told(self, name: str, error: str) -> Finding:
        return Finding(name, error.removeprefix(f"{self._archive.path(name)}: "))
