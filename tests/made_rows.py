"""Rows of the books as the service writes them, made by hand."""

import json
from dataclasses import replace
from typing import Any

from extauthz.ledger import Posting, Row, RowOutcome
from extauthz.service.entries import Entry

DAY_MS = 86_400_000
NOON_MS = 1_790_164_800_000
"""2026-09-23T12:00:00Z"""


def row(seq: int, outcome: RowOutcome, cost: int = 0, before: int = 0, **words: Any) -> Row:
    """A row of a call by `bot`; `words` are particulars, but for id, at_ms and claimed."""
    at_ms = words.pop("at_ms", NOON_MS + seq)
    id_ = words.pop("id", f"call-{seq}")
    claimed = words.pop("claimed", None)
    told = {
        "agent": "bot",
        "key": "abcd",
        "team": "crew",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "decision": f"decision-of-{id_}",
        "reserved_at_ms": str(at_ms - 5),
        "estimate_nanousd": "500",
        "price": "genai-prices/0",
    }
    return Row(
        seq,
        at_ms,
        outcome,
        id_,
        cost_nanousd=cost,
        cost_before_nanousd=before,
        claimed_nanousd=claimed,
        charged_at_ms=at_ms,
        postings=(Posting("agent/bot/day/usd:1790121600", 500, cost, before, at_ms + DAY_MS),),
        particulars=json.dumps(told | words),
    )


def settled(seq: int, cost: int, **words: Any) -> Row:
    return row(
        seq,
        RowOutcome.SETTLED,
        cost,
        **{
            "status": 200,
            "usage_is": "exact",
            "usage": {"input_tokens": 10, "output_tokens": 3},
            **words,
        },
    )


def entry(one: Row) -> Entry:
    return Entry.of(one)


def numbered(*rows: Row) -> list[Row]:
    return [replace(one, seq=seq) for seq, one in enumerate(rows, start=1)]
