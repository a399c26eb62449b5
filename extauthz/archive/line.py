"""A row as one line of JSON.

There is exactly one text for each row: keys in this order, no blanks, amounts as strings (JSON's
numbers are doubles to many readers). Reading refuses every other text, so that nobody can say the
same row in two ways, or two rows in one.
"""

import json
from typing import Any

from extauthz.ledger import Posting, Row, RowOutcome

_KEYS = (
    "seq",
    "at_ms",
    "outcome",
    "id",
    "cost_nanousd",
    "cost_before_nanousd",
    "claimed_nanousd",
    "charged_at_ms",
    "postings",
    "particulars",
)

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""JSON as it is written everywhere here: compact, in the order of the mapping."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_no_constant).decode


def line_of(row: Row) -> bytes:
    """A row as JSON, without the line's end."""
    fields = {
        "seq": row.seq,
        "at_ms": row.at_ms,
        "outcome": row.outcome.value,
        "id": row.id,
        "cost_nanousd": str(row.cost_nanousd),
        "cost_before_nanousd": str(row.cost_before_nanousd),
        "claimed_nanousd": None if row.claimed_nanousd is None else str(row.claimed_nanousd),
        "charged_at_ms": row.charged_at_ms,
        "postings": [
            {
                "counter": posting.counter,
                "held": str(posting.held),
                "charged": str(posting.charged),
                "before": str(posting.before),
                "forget_at_ms": posting.forget_at_ms,
            }
            for posting in row.postings
        ],
        "particulars": _embedded(row.particulars),
    }
    return encode(fields).encode()


def row_in(line: bytes) -> Row:
    """The row that a line says.

    Raises:
        ValueError: it is not the text that `line_of` writes for any row.
    """
    try:
        row = _row(_decode(line.decode()))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"is not a row ({error})") from error
    if line_of(row) != line:
        raise ValueError("is not written as rows are written here")
    return row


def _row(fields: Any) -> Row:
    if tuple(fields) != _KEYS:
        raise ValueError("is not a row: it has other keys")
    claimed, particulars = fields["claimed_nanousd"], fields["particulars"]
    return Row(
        seq=_whole(fields["seq"]),
        at_ms=_whole(fields["at_ms"]),
        outcome=RowOutcome(fields["outcome"]),
        id=_text(fields["id"]),
        cost_nanousd=_amount(fields["cost_nanousd"]),
        cost_before_nanousd=_amount(fields["cost_before_nanousd"]),
        claimed_nanousd=None if claimed is None else _amount(claimed),
        charged_at_ms=_whole(fields["charged_at_ms"]),
        postings=tuple(
            Posting(
                _text(posting["counter"]),
                _amount(posting["held"]),
                _amount(posting["charged"]),
                _amount(posting["before"]),
                _whole(posting["forget_at_ms"]),
            )
            for posting in fields["postings"]
        ),
        particulars=particulars if isinstance(particulars, str) else encode(particulars),
    )


def _embedded(particulars: str) -> Any:
    """Particulars as the object that they are, if its text can be made again from it."""
    if not particulars.startswith("{"):
        return particulars
    try:
        parsed = _decode(particulars)
        return parsed if encode(parsed) == particulars else particulars
    except (ValueError, RecursionError):
        return particulars


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("a whole number is missing")
    return value


def _amount(value: Any) -> int:
    return int(_text(value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is missing")
    return value
