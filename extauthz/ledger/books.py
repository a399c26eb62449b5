"""How rows are kept: the specification of an org's books; a part of `Ledger`."""

from dataclasses import dataclass, field, replace
from typing import Any

from extauthz.ledger.rows import Row, RowOutcome
from extauthz.ledger.sealing import Seal, Sealed, Standing


@dataclass(slots=True)
class Books:
    """Rows in the order in which they were written; what is archived is trimmed from the front."""

    rows: list[Row] = field(default_factory=list)
    last_seq: int = 0
    _sealing: Standing = field(default_factory=Standing)

    def open(self, at_ms: int) -> None:
        """Write the first row, if there is none yet."""
        if not self.last_seq:
            self.write(at_ms, RowOutcome.OPENED, "books")

    def write(self, at_ms: int, outcome: RowOutcome, id_: str, **words: Any) -> None:
        """Add a row, about the moment in which it is written unless it says otherwise."""
        self.last_seq += 1
        words.setdefault("charged_at_ms", at_ms)
        self.rows.append(Row(self.last_seq, at_ms, outcome, id_, **words))

    def after(self, seq: int, count: int) -> list[Row]:
        """Up to `count` rows after a number, in order."""
        return [row for row in self.rows if row.seq > seq][:count]

    @property
    def standing(self) -> Standing:
        """How far they are sealed, and by whom."""
        return replace(self._sealing, last_seq=self.last_seq)

    def claim(self, holder: str, at_ms: int, until_ms: int) -> Standing:
        """Be the one that archives them, unless another one is."""
        if self._sealing.holder == holder or self._sealing.until_ms <= at_ms:
            self._sealing = replace(self._sealing, holder=holder, until_ms=until_ms)
        return self.standing

    def note_behind(self, archived_seq: int, why: str | None) -> None:
        """Say that rows which are archived are missing here; None: not any more."""
        archived_seq = archived_seq if why else 0
        self._sealing = replace(self._sealing, behind=why or "", archived_seq=archived_seq)

    def seal(self, command: Seal) -> Sealed:
        """Drop the rows that are archived."""
        if self._sealing.holder != command.holder:
            return Sealed.NOT_HOLDER
        if self._sealing.through_seq != command.before_seq:
            return Sealed.MOVED
        if self.last_seq < command.through_seq:
            return Sealed.BEHIND
        self.rows = [row for row in self.rows if row.seq > command.through_seq]
        self._sealing = replace(
            self._sealing,
            until_ms=command.until_ms,
            through_seq=command.through_seq,
            hash=command.hash,
        )
        return Sealed.SEALED
