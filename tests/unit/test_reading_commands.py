"""Prices and explanations on the command line, and what they say of what cannot be."""

import asyncio
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_rows import row, settled

from extauthz import cli
from extauthz.commands.books import Books
from extauthz.commands.explain import _explain
from extauthz.commands.spend import _spend
from extauthz.commands.terminal import bar, columns, fitted, printable, width_of
from extauthz.commands.times import zone_of
from extauthz.config import load
from extauthz.ledger import Row, RowOutcome
from extauthz.pricing import PRICE_LIST_VERSION
from extauthz.server.archives import archives_of
from extauthz.store.memory import MemoryStore

CONFIG = """
data_dir: ./data
providers:
  openai: {api: openai, upstream: "https://api.openai.com", credential: {env: KEY}}
  mirror: {api: openai, upstream: "https://api.openai.com", credential: {env: KEY}}
prices:
  - {provider: openai, model: ft-support, input: 0.0001, output: 0.0003}
defaults: {timezone: Europe/Berlin}
agents:
  bot:
    keys: ["sha256:0000000000000000000000000000000000000000000000000000000000000001"]
    budgets: [{limit: 1, window: day}, {limit: 9, window: day, unit: tokens, id: words}]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "extauthz.yaml"
    path.write_text(CONFIG)
    return path


def run(config: Path, *words: str) -> None:
    cli.main([*words, "-c", str(config)])


def priced(config: Path, capsys, *words: str) -> dict:
    run(config, "price", *words, "--json")
    return json.loads(capsys.readouterr().out)


def test_a_price_names_each_kind_its_rate_and_what_the_ledger_would_charge(config, capsys):
    words = ("--input", "900", "--output", "45", "--cached", "333", "--provider", "openai")
    said = priced(config, capsys, "gpt-4o-mini", *words)
    assert [(line["kind"], line["count"], line["rate_usd"]) for line in said["bill"]] == [
        ("input_tokens", 567, "0.15"),
        ("cache_read_tokens", 333, "0.075"),
        ("output_tokens", 45, "0.6"),
    ]
    assert said["cost_usd"] == "0.000137025"  # 0.00008505 + 0.000024975 + 0.000027
    assert said["price"] == PRICE_LIST_VERSION

    run(config, "price", "gpt-4o-mini", *words)
    text = capsys.readouterr().out
    assert PRICE_LIST_VERSION in text
    assert "input_tokens 567 x 0.15 per 1,000,000 0.00008505 USD" in " ".join(text.split())
    assert text.rstrip().endswith("0.000137025 USD")


def test_a_price_is_rounded_up_once_for_the_call(config, capsys):
    said = priced(config, capsys, "ft-support", "--input", "1", "--output", "1")
    assert said["cost_usd"] == "0.000000001"  # 0.0001 + 0.0003 nano-USD: not one for each
    assert said["price"] == "config"


def test_a_price_is_that_of_its_time(config, capsys):
    words = ("o3", "--input", "1000000", "--output", "0", "--provider", "openai", "--at")
    now, then = (
        priced(config, capsys, *words, at)["cost_usd"] for at in ("2026-11-01", "2025-05-01")
    )
    assert (now, then) == ("2.00", "10.00")


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (("gpt-40-mini", "--provider", "openai"), "near it are: gpt-4o-mini", 1),
        (("gpt-4o",), "choose one with --provider: mirror, openai", 1),
        (("gpt-4o", "--provider", "azure"), "the config has none of this name", 1),
        (("gpt-4o", "--provider", "openai", "--cached", "7"), "cannot exceed input_tokens", 1),
        (("gpt-4.1", "--provider", "openai", "--audio-in", "1"), "no price for audio", 1),
        (("gpt-4o", "--at", "soon"), "--at soon: write how long ago", 1),
        (("gpt-4o", "--at", "2026-13-01"), "--at 2026-13-01: write how long ago", 1),
        (("gpt-4o", "--timezone", "Mars"), "there is no such time zone", 1),
        (("gpt-4o", "--cached", "many"), "'many': write a whole number of tokens", 2),
    ],
)
def test_what_has_no_price_is_said_with_a_remedy(config, capsys, words, said, status):
    with pytest.raises(SystemExit) as caught:
        run(config, "price", *words, "--input", "1", "--output", "1")
    assert caught.value.code == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (("ledger", "tail", "--since", "yesterday"), "--since yesterday: write", 1),
        (("ledger", "tail", "-n", "-1"), "'-1': write a whole number", 2),
        (("ledger", "export", "--format", "xml"), "invalid choice: 'xml'", 2),
        (("ledger", "tail", "--outcome", "lost"), "invalid choice: 'lost'", 2),
        (("spend", "--by", "moon"), "invalid choice: 'moon'", 2),
        (("spend", "--by", "day", "--until", "later"), "--until later: write", 1),
        (("spend", "--by", "day"), "the embedded store runs with 'extauthz up'", 1),
        (("ledger", "explain", "x"), "the embedded store runs with 'extauthz up'", 1),
    ],
)
def test_what_cannot_be_read_is_said_with_a_remedy(config, capsys, words, said, status):
    with pytest.raises(SystemExit) as caught:
        run(config, *words)
    assert caught.value.code == status
    assert said in capsys.readouterr().err


def told(config: Path, capsys, work, rows: list[Row], **options: object) -> str:
    """What a command prints of books with these rows."""
    store = MemoryStore()
    store._ledgers["default"].books.rows = rows
    names = ("agent", "team", "model", "provider", "key")
    given = {**dict.fromkeys(names, ()), "since": None, "until": None, "json": False, **options}
    books = Books(
        load(config), store, zone_of("Europe/Berlin"), archives_of(load(config))("default")
    )
    asyncio.run(work(books, SimpleNamespace(**given)))
    return capsys.readouterr().out


BILL = [["input_tokens", 567, "0.15"], ["cache_read_tokens", 333, "0.075"],
        ["output_tokens", 45, "0.6"]]  # fmt: skip
USAGE = {"input_tokens": 900, "cache_read_tokens": 333, "output_tokens": 45}


def explained(config: Path, capsys, **words: object) -> str:
    one = settled(1, 137_025, id="x", estimate_nanousd="200000", usage=USAGE, **words)
    return told(config, capsys, _explain, [one], id="x")


def test_rates_in_the_row_explain_a_cost_whatever_list_is_installed(config, capsys):
    text = explained(config, capsys, bill=BILL, price="genai-prices/0.0.1", model="gone-model")
    assert "by genai-prices/0.0.1" in text
    assert "0.00008505 USD" in text
    assert "This equals what was charged." in text
    assert f"installed now is another, {PRICE_LIST_VERSION}: by it this has no price" in text


def test_a_list_of_another_version_is_told_with_what_it_says(config, capsys):
    text = explained(config, capsys, bill=BILL, price="genai-prices/0.0.1")
    assert "by it this would be 0.000137025 USD" in text
    text = explained(config, capsys, bill=BILL, price=PRICE_LIST_VERSION)
    assert "another" not in text


def test_a_row_without_rates_is_worked_out_by_todays(config, capsys):
    text = explained(config, capsys, price=PRICE_LIST_VERSION)
    assert "The row keeps no rates" in text
    assert "This equals what was charged." in text


def test_a_charge_that_its_usage_does_not_explain_is_said_plainly(config, capsys):
    wrong = [["input_tokens", 567, "0.16"]]
    assert "This does NOT equal what was charged" in explained(config, capsys, bill=wrong)


def test_what_the_provider_itself_said_that_it_charges_is_part_of_the_explanation(config, capsys):
    one = settled(1, 200_000, id="x", usage=USAGE, bill=BILL, told_cost_usd="0.0002")
    text = told(config, capsys, _explain, [one], id="x")
    assert "The provider itself said that it charges more" in text
    assert "This equals what was charged" in text


def test_a_fixed_price_is_explained_as_one(config, capsys):
    one = settled(1, 200_000, id="x", usage={}, price="config", endpoint="fixed_price")
    text = told(config, capsys, _explain, [one], id="x")
    assert "the endpoint's fixed price" in text


def test_a_cut_answer_is_explained_by_the_estimate(config, capsys):
    one = settled(1, 200_000, id="x", estimate_nanousd="200000", usage_is="lower_bound", bill=BILL)
    text = told(config, capsys, _explain, [one], id="x")
    assert "that is the least it did cost: charged the estimate" in text


def test_all_rows_of_a_call_are_explained_in_order_by_either_of_its_ids(config, capsys):
    rows = [
        row(1, RowOutcome.EXPIRED_UNCONFIRMED, 500, id="x", agent="\x1b[31mbot"),
        row(2, RowOutcome.LATE, 30, 500, id="x", adjusted="the invoice"),
        row(3, RowOutcome.CONFLICT, 30, 30, id="x", claimed=9),
        settled(4, 7, id="y"),
    ]
    by_decision = told(config, capsys, _explain, rows, id="decision-of-x")
    text = told(config, capsys, _explain, rows, id="x")
    assert text == by_decision
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("row ")] == [
        "expired_unconfirmed", "late", "conflict"
    ]  # fmt: skip
    assert "the invoice" in text
    assert "claimed 0.000000009 USD" in text
    assert "agent/bot/day/usd from 2026-09-23T00:00:00Z: held -0.0000005 USD" in text
    assert "spent -0.00000047 USD" in text
    assert "\x1b" not in text


def test_spend_is_a_table_with_totals_and_says_what_is_unconfirmed(config, capsys):
    rows = [
        settled(1, 1_500_000_000, agent="a"),
        row(2, RowOutcome.EXPIRED_UNCONFIRMED, 500, agent="b"),
        settled(3, 7, agent=""),
    ]
    lines = told(config, capsys, _spend, rows, by="agent").splitlines()
    assert "Europe/Berlin time" in lines[0]
    assert [" ".join(line.split()[:5]) for line in lines[2:7]] == [
        "agent calls tokens in tokens",
        "a 1 10 3 1.500000000",
        "b 1 0 0 0.000000500",
        "(none) 1 10 3 0.000000007",
        "total 3 20 6 1.500000507",
    ]
    assert "█" in lines[3]
    assert "0.0000005 USD are unconfirmed: 1 call was charged when its lease ran out" in lines[8]
    assert "Nothing was spent." in told(config, capsys, _spend, rows, by="agent", agent=["z"])
    assert "Nothing was spent." in told(
        config, capsys, _spend, rows, by="agent", until="2026-09-22"
    )
    assert "a" in told(config, capsys, _spend, rows, by="agent", until="2026-09-23")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_table_keeps_within_its_terminal(config, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [settled(1, 5, agent="会" * 60), settled(2, 5, agent="b")]
    lines = told(config, capsys, _spend, rows, by="agent").splitlines()[2:]
    least = 8 + len("  calls  tokens in  tokens out  0.000000010")
    assert max(map(width_of, lines)) <= max(width, least)


def test_columns_are_aligned_whatever_script_names_are_written_in():
    lines = columns([("会议", "1"), ("e\u0301a", "22"), ("abcd", "333")], (False, True), 80)
    assert {width_of(line) for line in lines} == {9}
    assert fitted("abcdef", 4) in ("abc…", "abc~")


def test_bars_are_whole_parts_and_plain_where_the_terminal_is(monkeypatch):
    assert bar(0, 10, 8) == bar(-5, 10, 8) == bar(5, 0, 8) == ""
    assert bar(10, 10, 8) == "█" * 8
    assert bar(1, 10**9, 8) == "▏"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert bar(10, 10, 8) == "#" * 8


def test_what_is_printed_cannot_steer_a_terminal():
    assert printable("a\x1b[2J\u202e\u200b\x9b\n") == "a?[2J????"
    assert printable("bot-é会") == "bot-é会"
