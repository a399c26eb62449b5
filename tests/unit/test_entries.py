"""Which rows a filter lets through, and how rows leave the house as JSON and CSV."""

import csv
import io
import json
from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest
from made_rows import NOON_MS, entry, row, settled

from extauthz.commands.row_formats import COLUMNS, cells_of, csv_cells, json_of, line_of
from extauthz.ledger import Row, RowOutcome
from extauthz.service.entries import Entry, EntryFilter

ONE = settled(1, 19_500, agent="slack-bot", team="support", key="k1", model="GPT-4o-mini")


def wants(wanted: EntryFilter, one: Row = ONE) -> bool:
    return wanted.wants(entry(one), one.at_ms)


@pytest.mark.parametrize(
    ("name", "fitting", "other"),
    [
        ("agent", "slack-bot", "slack"),
        ("agent", "slack-*", "Slack-*"),
        ("team", "support", "sales"),
        ("key", "k1", "k2"),
        ("provider", "openai", "anthropic"),
        ("model", "gpt-4o-*", "gpt-4o"),
        ("outcome", "settled", "released"),
        ("id", "call-1", "call-2"),
        ("id", "decision-of-call-1", "decision"),
    ],
)
def test_each_filter_lets_through_what_fits_and_all_of_them_must_fit(name, fitting, other):
    assert wants(EntryFilter(**{name: (fitting,)}))
    assert not wants(EntryFilter(**{name: (other,)}))
    assert wants(EntryFilter(**{name: (other, fitting)}))
    if name != "agent":
        assert not wants(EntryFilter(**{name: (fitting,), "agent": ("somebody",)}))
        assert wants(EntryFilter(**{name: (fitting,), "agent": ("slack-bot",)}))


def test_the_first_instant_is_wanted_and_the_last_is_not():
    at_ms = ONE.at_ms
    assert wants(EntryFilter(since_ms=at_ms, until_ms=at_ms + 1))
    assert not wants(EntryFilter(since_ms=at_ms + 1))
    assert not wants(EntryFilter(until_ms=at_ms))


@pytest.mark.parametrize("particulars", ["", "{", "[]", "7", '{"agent":7,"usage":[],"bill":"x"}'])
def test_a_row_whose_particulars_are_unreadable_is_shown_without_them(particulars):
    one = replace(ONE, particulars=particulars)
    assert wants(EntryFilter(), one)
    assert not wants(EntryFilter(agent=("bot",)), one)
    assert json.loads(json_of(entry(one), "default"))["agent"] is None
    assert line_of(entry(one), ZoneInfo("UTC"))


def test_a_line_of_json_keeps_every_amount_exactly_as_text():
    late = row(7, RowOutcome.LATE, 2**52, 2**52 + 1, id="x", usage={"input_tokens": 5})
    said = json.loads(json_of(entry(late), "default"))
    assert (said["cost_usd"], said["change_usd"]) == ("4503599.627370496", "-0.000000001")
    assert said["postings"] == [
        {
            "counter": "agent/bot/day/usd:1790121600",
            "held": "500",
            "charged": str(2**52),
            "before": str(2**52 + 1),
            "change": "-1",
        }
    ]
    assert said["time"] == "2026-09-23T12:00:00.007Z"
    assert said["gen_ai.usage.input_tokens"] == 5
    assert said["gen_ai.usage.output_tokens"] is None
    assert said["claimed_usd"] is None
    assert not any(isinstance(value, float) for value in said.values())


def test_columns_are_the_same_for_every_row():
    for one in (ONE, Row(1, 1, RowOutcome.OPENED, "books")):
        assert tuple(cells_of(entry(one), "default")) == COLUMNS


HOSTILE = (
    "=1+1",
    "+1",
    "-1+1",
    "@SUM(A1)",
    " =1",
    "\t=1",
    "\r=1",
    "\uff1d1",
    '=HYPERLINK("x","y")',
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_becomes_a_formula(text):
    cells = as_csv(settled(1, 5, agent=text, model=text, adjusted=text, served_model=text))
    for name in ("agent", "gen_ai.request.model", "gen_ai.response.model", "note"):
        assert cells[name].startswith("'")
        assert cells[name].strip("'").split() == text.split()


def test_an_amount_below_zero_stays_a_number():
    cells = as_csv(row(1, RowOutcome.LATE, 1, 3))
    assert cells["change_usd"] == "-0.000000002"


def test_cells_with_commas_quotes_and_lines_stay_one_cell_in_one_row():
    cells = as_csv(settled(1, 5, agent='a,"b"', adjusted="one\ntwo\x1b[31m"))
    assert cells["agent"] == 'a,"b"'
    assert cells["note"] == "one two [31m"


def as_csv(one: Row) -> dict[str, str]:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerow(csv_cells(entry(one), "default"))
    assert file.getvalue().count("\n") == 2
    (found,) = csv.DictReader(io.StringIO(file.getvalue()))
    return found


def test_a_line_for_people_says_its_time_zone_and_cannot_steer_their_terminal():
    one = settled(1, 19_500, agent="\x1b]0;owned\x07\u202ebot", at_ms=NOON_MS)
    line = line_of(entry(one), ZoneInfo("Europe/Berlin"))
    assert line.startswith("2026-09-23T14:00:00+02:00  settled")
    assert "?]0;owned??bot" in line
    assert line.isprintable()
    assert "10/3" in line
    assert " 0.0000195  call-1" in line


def test_an_override_is_told_in_its_own_words():
    words = {"change": "set", "target": "agent/bot/day/usd", "amount": "5", "note": "why"}
    one = Row(1, 1, RowOutcome.OVERRIDE, "o1", particulars=json.dumps(words))
    assert line_of(Entry.of(one), ZoneInfo("UTC")).endswith("o1  set agent/bot/day/usd 5 why")
