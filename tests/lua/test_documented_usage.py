"""Answers as the providers document them, from the wire to the bill: tests/corpus, entry by entry.

Each passes the filter that Envoy runs, whole and byte by byte, and then the adapter of its
endpoint; the kinds of usage, and the cost worked out by hand from the providers' list prices, are
what the entry says. Names and counts are as published; prose, ids and pictures are left out.
"""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse
from extauthz.sandbox.bedrock import Frame
from extauthz.usage import UsageReport

CORPUS = sorted((Path(__file__).parents[1] / "corpus").glob("*.json"))
ENTRIES: list[dict[str, Any]] = [
    entry for path in CORPUS for entry in json.loads(path.read_text(), parse_float=Decimal)
]
AT_MS = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) * 1000
BOOK = PriceBook([])
FRAMES = "application/vnd.amazon.eventstream"
HOSTS = ("bedrock", "vertex")
"""They answer by the model's own name, if any, which is not the one that they price it under."""


def entries(wanted: Callable[[dict[str, Any]], bool]) -> pytest.MarkDecorator:
    found = [entry for entry in ENTRIES if wanted(entry)]
    return pytest.mark.parametrize("entry", found, ids=lambda entry: entry["name"])


def to_json(value: Any) -> str:
    return json.dumps(value, default=float)


def on_the_wire(entry: dict[str, Any]) -> tuple[bytes, str]:
    """The body, and its content type."""
    if "frames" in entry:
        return b"".join(framed(*event) for event in entry["frames"]), FRAMES
    if "body" in entry:
        return to_json(entry["body"]).encode(), "application/json"
    lines = []
    for name, data in entry["events"]:
        lines += [f"event: {name}"] * (name is not None)
        lines += [f"data: {data if isinstance(data, str) else to_json(data)}", ""]
    return "\n".join([*lines, ""]).encode(), "text/event-stream; charset=utf-8"


def framed(kind: str, data: Any) -> bytes:
    """An event of AWS's stream; `chunk` holds a model's own, `!` begins an exception's name."""
    text = json.dumps(data, default=float, separators=(",", ":"))
    if kind == "chunk":
        text = json.dumps({"bytes": base64.b64encode(text.encode()).decode(), "p": "abc"},
                          separators=(",", ":"))  # fmt: skip
    name = kind.removeprefix("!")
    return Frame(text, name, "event" if name == kind else "exception").encode("")


def captured(facts: dict[str, Any]) -> CapturedResponse:
    """What the sink makes of the filter's facts."""
    text = {key: value.decode() for key, value in facts.items() if isinstance(value, bytes)}
    return CapturedResponse(
        usage=text.get("usage"),
        usage_start=text.get("usage_start"),
        model=text.get("model"),
        service_tier=text.get("service_tier"),
        error=facts.get("error", False),
        complete=facts.get("complete", False),
        metrics=text.get("metrics"),
    )


def report_of(lua_filter: Any, entry: dict[str, Any]) -> UsageReport:
    body, content_type = on_the_wire(entry)
    headers = entry.get("headers")
    facts = lua_filter.response([body], content_type, headers=headers)
    by_byte = [body[i : i + 1] for i in range(len(body))]
    assert facts == lua_filter.response(by_byte, content_type, headers=headers)
    endpoint = ADAPTERS[entry["api"]].endpoint(entry["endpoint"])
    assert endpoint is not None
    return endpoint.read_usage(captured(facts))


def cost_of(entry: dict[str, Any], report: UsageReport) -> int:
    provider = ADAPTERS[entry["api"]].price_provider
    priced = BOOK.settled_at(provider, provider, entry["model"], report.served_model)
    assert priced is not None
    return priced.cost(report, AT_MS)


@entries(lambda _: True)
def test_the_documented_usage_is_read_kind_by_kind(lua_filter, entry):
    report = report_of(lua_filter, entry)

    assert report.exactness == entry.get("exactness", "exact")
    assert {kind: count for kind, count in report.amounts.items() if count} == {
        kind: count for kind, count in entry["usage"].items() if count
    }
    told = entry.get("told_cost_usd")
    assert report.told_cost_usd == (told and Decimal(told))
    if "body" in entry and report.exactness != "unknown" and entry["api"] not in HOSTS:
        body = entry["body"]
        assert report.served_model == body.get("model", body.get("modelVersion"))


@entries(lambda entry: entry["nanousd"] is not None)
def test_the_documented_usage_costs_what_the_list_prices_make_of_it(lua_filter, entry):
    report = report_of(lua_filter, entry)
    usd = sum((count * Decimal(per_million) for count, per_million in entry["bill"]), Decimal(0))
    assert usd * 1000 == entry["nanousd"], "the entry itself does not add up"
    assert cost_of(entry, report) == entry["nanousd"]


def test_every_entry_names_its_source_and_every_large_provider_is_there():
    assert all(entry["source"].startswith("https://") for entry in ENTRIES)
    assert {entry["api"] for entry in ENTRIES} >= {
        "openai", "anthropic", "azure", "mistral", "groq", "deepseek", "xai", "openrouter",
        "perplexity", "gemini", "vertex", "bedrock", "cohere",
    }  # fmt: skip
