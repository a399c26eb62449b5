"""How rows are kept: the specification of an org's books; a part of `Ledger`."""

from dataclasses import dataclass, field
from typing import Any

from extauthz.ledger.rows import Row, RowOutcome


@dataclass(slots=True)
class Books:
    """Rows in the order in which they were written; what is archived is trimmed from the front."""

    rows: list[Row] = field(default_factory=list)
    last_seq: int = 0

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

    def trim(self, through_seq: int) -> None:
        """Drop the rows up to a number."""
        self.rows = [row for row in self.rows if row.seq > through_seq]
