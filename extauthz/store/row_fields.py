"""A row as the stream keeps it; `write_row` in `scripts/prelude.lua` writes what is read here."""

from collections.abc import Sequence

from extauthz.ledger import Posting, Row, RowOutcome


def row_of(entry_id: str, flat: Sequence[str]) -> Row:
    """A row from an entry of the stream."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    counters = fields["counters"].split("\n") if fields["counters"] else []
    amounts = (map(int, fields[name].split()) for name in ("held", "charged", "before", "forget"))
    return Row(
        seq=seq_of(entry_id),
        at_ms=int(fields["at"]),
        outcome=RowOutcome(fields["outcome"]),
        id=fields["id"],
        cost_nanousd=int(fields["cost"]),
        cost_before_nanousd=int(fields["cost_before"]),
        claimed_nanousd=int(fields["claimed"]) if fields["claimed"] else None,
        charged_at_ms=int(fields["charged_at"]),
        postings=tuple(
            Posting(counter, *rest) for counter, *rest in zip(counters, *amounts, strict=True)
        ),
        particulars=fields["particulars"],
    )


def seq_of(entry_id: str) -> int:
    """A row's number: the second part of its entry's id, the first is always 0."""
    return int(entry_id.partition("-")[2])
