"""A row of the books as a JSON object, as cells of a table, and as a line for people.

Names are those of OpenTelemetry's GenAI conventions where these have one, else this project's.
https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import json
import unicodedata
from typing import Any
from zoneinfo import ZoneInfo

from extauthz.commands.terminal import fitted, printable
from extauthz.commands.times import local, utc
from extauthz.ledger import RowOutcome
from extauthz.money import format_usd
from extauthz.service.entries import ENDING, Entry

_USAGE = {
    "gen_ai.usage.input_tokens": "input_tokens",
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cache_read_tokens",
    "gen_ai.usage.cache_creation.input_tokens": "cache_write_tokens",
    "gen_ai.usage.reasoning.output_tokens": "output_reasoning_tokens",
}
_FORMULA = "=+-@＝＋－＠"  # noqa: RUF001 - spreadsheets take the wide ones too
_WIDTHS = (25, 19, 16, 28, 13, 15)
HEADER = "  ".join(
    fitted(name, width, right=width in _WIDTHS[4:])
    for name, width in zip(
        ("time", "outcome", "agent", "provider/model", "tokens in/out", "USD"), _WIDTHS, strict=True
    )
)


def cells_of(entry: Entry, org: str) -> dict[str, str | int | None]:
    """What a row says, by column; None: it does not say. USD are exact decimal texts."""
    row = entry.row
    usage = entry.usage
    estimate, reserved_at_ms = entry.number("estimate_nanousd"), entry.number("reserved_at_ms")
    return {
        "seq": row.seq,
        "time": utc(row.at_ms),
        "org": org,
        "outcome": row.outcome.value,
        "id": row.id,
        "decision_id": entry.text("decision") or None,
        "agent": entry.text("agent") or None,
        "team": entry.text("team") or None,
        "key": entry.text("key") or None,
        "gen_ai.provider.name": entry.text("provider") or None,
        "gen_ai.request.model": entry.text("model") or None,
        "gen_ai.response.model": entry.text("served_model") or None,
        **{name: usage.get(kind) for name, kind in _USAGE.items()},
        "exactness": entry.text("usage_is") or None,
        "cost_usd": format_usd(row.cost_nanousd),
        "cost_before_usd": format_usd(row.cost_before_nanousd),
        "change_usd": format_usd(row.change_nanousd),
        "claimed_usd": None if row.claimed_nanousd is None else format_usd(row.claimed_nanousd),
        "estimate_usd": None if estimate is None else format_usd(estimate),
        "priced_as": entry.text("priced_as") or None,
        "price": entry.text("price") or None,
        "http.response.status_code": entry.number("status"),
        "duration_ms": entry.number("duration_ms"),
        "reserved_time": None if reserved_at_ms is None else utc(reserved_at_ms),
        "note": note_of(entry) or None,
    }


def json_of(entry: Entry, org: str) -> str:
    """One line of JSON: the cells, and what does not fit into cells."""
    postings = [
        {
            "counter": posting.counter,
            "held": str(posting.held),
            "charged": str(posting.charged),
            "before": str(posting.before),
            "change": str(posting.change),
        }
        for posting in entry.row.postings
    ]
    more: dict[str, Any] = {
        "usage": entry.usage,
        "bill": [line.to_json() for line in entry.bill],
        "postings": postings,
    }
    return json.dumps(cells_of(entry, org) | more, separators=(",", ":"))


COLUMNS = (
    "seq", "time", "org", "outcome", "id", "decision_id", "agent", "team", "key",
    "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model", *_USAGE, "exactness",
    "cost_usd", "cost_before_usd", "change_usd", "claimed_usd", "estimate_usd", "priced_as",
    "price", "http.response.status_code", "duration_ms", "reserved_time", "note",
)  # fmt: skip
"""Of a table, in this order. New ones are added at the end."""


def csv_cells(entry: Entry, org: str) -> list[str]:
    """A row's cells as a spreadsheet may read them."""
    cells = cells_of(entry, org)
    return [_csv_cell(name, cells[name]) for name in COLUMNS]


def _csv_cell(name: str, value: str | int | None) -> str:
    """A text that begins as a formula does gets a `'` before it, which spreadsheets do not show.

    What the ledger reckoned is a number, below zero too, and stays one.
    """
    if value is None:
        return ""
    text = "".join(" " if unicodedata.category(sign) == "Cc" else sign for sign in str(value))
    is_amount = name.endswith("_usd")
    return f"'{text}" if not is_amount and text.lstrip()[:1] in tuple(_FORMULA) else text


def line_of(entry: Entry, zone: ZoneInfo) -> str:
    """A line for people: when, how it ended, whose, at whom, how much, which."""
    row, usage = entry.row, entry.usage
    model = entry.text("model")
    tokens = f"{usage.get('input_tokens', 0)}/{usage.get('output_tokens', 0)}" if usage else ""
    change = format_usd(row.change_nanousd) if row.outcome in ENDING else ""
    cells = (
        local(row.at_ms, zone),
        row.outcome.value,
        entry.text("agent"),
        f"{entry.text('provider')}/{model}" if model else "",
        tokens,
        change,
    )
    texts = [
        fitted(printable(text), width, right=width in _WIDTHS[4:])
        for text, width in zip(cells, _WIDTHS, strict=True)
    ]
    return "  ".join([*texts, printable(row.id), printable(note_of(entry))]).rstrip()


def note_of(entry: Entry) -> str:
    """What else a row says: what an operator wrote, or what was claimed and not applied."""
    row = entry.row
    if row.outcome is RowOutcome.OVERRIDE:
        names = ("change", "target", "key", "amount", "until_ms", "note")
        return " ".join(str(entry.words[name]) for name in names if entry.words.get(name))
    if row.claimed_nanousd is not None:
        return f"claimed {format_usd(row.claimed_nanousd)} USD"
    return entry.text("adjusted")
