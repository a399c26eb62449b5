"""What is fuzzed: each takes bytes, and raises where the product is wrong about them.

A refusal is right whatever was sent. What is not refused must mean the same to the sandbox, which
reads and prices with code of its own, and must not cost more there than was estimated.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from extauthz.config import ConfigError, parse, policies_of, prices_of
from extauthz.identity import CredentialError, hash_key, read_credential
from extauthz.pb import access_log_pb2
from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Edit, Request, RequestError
from extauthz.sandbox.anthropic import Anthropic
from extauthz.sandbox.bedrock import Converse
from extauthz.sandbox.cohere import Cohere
from extauthz.sandbox.gemini import Gemini
from extauthz.sandbox.openai import OpenAI
from extauthz.sandbox.openai_small import Completions, Embeddings
from extauthz.sandbox.openai_uploads import (
    ImageEdits,
    Transcriptions,
    Translations,
    parse_form,
)
from extauthz.sandbox.prices import PriceTable
from extauthz.sandbox.responses import Responses
from extauthz.sandbox.script import Script
from extauthz.sandbox.wire import Refusal, Wire, parse_object
from extauthz.service.call_record import CallRecord, RecordError
from extauthz.service.capping import edits_with, written_cap
from extauthz.servicers.file_log import read_lines
from extauthz.servicers.translate import completed_call, has_left, record_text, request_id
from extauthz.usage import Exactness

CORPUS = Path(__file__).with_name("corpus")
NOW_MS = 1_795_000_000_000
BOOK, SANDBOX_PRICES = PriceBook([]), PriceTable()
TALKATIVE = Script(output_tokens=10**7)  # goes on until its cap
CAPS = (1, 7, 256, 100_000)

ENDPOINTS: tuple[tuple[str, str, Wire | None, str | None], ...] = (
    ("openai", "chat", OpenAI("k"), None),
    ("openai", "responses", Responses("k"), None),
    ("openai", "completions", Completions("k"), None),
    ("openai", "embeddings", Embeddings("k"), None),
    ("anthropic", "messages", Anthropic("k"), None),
    ("cohere", "chat", Cohere("k"), None),
    ("gemini", "generate_content", Gemini("k"), "gemini-2.5-flash"),
    ("bedrock", "converse", Converse(), "us.anthropic.claude-haiku-4-5-20251001-v1:0"),
)
"""With a reader of the sandbox's own. The first byte of an input chooses among these and all other
endpoints, which are only held not to crash."""

OTHERS = tuple(
    (api, name, None, "gemini-2.5-flash")
    for api, name in dict.fromkeys(
        (api, endpoint.name)
        for api, adapter in ADAPTERS.items()
        for endpoint in adapter.endpoints
        if endpoint.read_request is not None and not endpoint.reads_form
    )
    if (api, name) not in {(known, of) for known, of, *_ in ENDPOINTS}
)

FORMS: tuple[tuple[str, str, Wire | None, str | None], ...] = (
    ("openai", "transcriptions", Transcriptions("k"), None),
    ("openai", "translations", Translations("k"), None),
    ("openai", "image_edits", ImageEdits("k"), None),
)
FORM_TYPE = "multipart/form-data; boundary=x"


def fuzz_body(data: bytes) -> None:
    """A request body: refused, or estimated at no less than the sandbox would bill for it."""
    if not data:
        return
    choices = (*ENDPOINTS, *OTHERS, *FORMS)
    api, name, wire, path_model = choices[data[0] % len(choices)]
    body = data[1:]
    adapter = ADAPTERS[api]
    content_type = FORM_TYPE if (api, name, wire, path_model) in FORMS else "application/json"
    try:
        facts = adapter.read_request(name, Request(body, path_model, content_type))
    except RequestError as error:
        assert error.message, "a refusal says what to do"
        return
    if None in facts.counted.values():
        return  # refused, where the config bounds it no better than the request does
    priced = BOOK.find(api, adapter.price_provider, facts.model)
    if priced is None or not priced.covers(facts, NOW_MS):
        return
    estimate = priced.estimate(facts, NOW_MS, None)
    _must_cover(wire, path_model, edited(body, facts.edits), estimate.nanousd)
    if facts.cap_slot is None:
        return
    for granted in CAPS:
        cap = written_cap(granted, None, facts, estimate)
        if cap is not None:
            changed = edited(body, edits_with(facts, cap))
            json.loads(changed)
            _must_cover(wire, path_model, changed, estimate.nanousd_under.at(cap))


def _must_cover(wire: Wire | None, path_model: str | None, body: bytes, nanousd: int) -> None:
    """The sandbox refuses the body, or bills no more than this for the longest answer."""
    if wire is None:
        return
    try:
        is_form = isinstance(wire, Transcriptions | ImageEdits)
        document = parse_form(body, FORM_TYPE) if is_form else parse_object(body)
        call = wire.parse(
            document | ({"model": path_model} if path_model else {}), SANDBOX_PRICES, TALKATIVE
        )
    except Refusal:
        return
    cost = call.model.cost(call.usage)
    assert cost <= nanousd, f"{cost} nano-USD were estimated at {nanousd}"


def edited(body: bytes, edits: tuple[Edit, ...]) -> bytes:
    """As Envoy's Lua does it."""
    for edit in sorted(edits, key=lambda one: one.offset, reverse=True):
        end = edit.offset + edit.dropped
        assert 0 <= edit.offset <= end <= len(body)
        body = body[: edit.offset] + edit.text.encode() + body[end:]
    return body


def fuzz_entry(data: bytes) -> None:
    """An access-log entry, as protobuf, as a line of the file log, and as captured usage."""
    with contextlib.suppress(DecodeError, RecordError):
        entry = access_log_pb2.HTTPAccessLogEntry.FromString(data)
        request_id(entry)
        has_left(entry)
        text = record_text(entry)
        if text is not None:
            call = completed_call(entry, CallRecord.from_json(text))
            _must_be_amounts("openai", call.captured)
    read = read_lines(data.split(b"\n"))
    assert read.unreadable <= data.count(b"\n") + 1
    api, *parts = data.decode(errors="replace").split("\x1f")
    names = ("usage", "usage_start", "model", "service_tier", "metrics")
    fields = dict(zip(names, parts, strict=False))
    _must_be_amounts(api, CapturedResponse(complete=True, **fields))


def _must_be_amounts(api: str, captured: CapturedResponse) -> None:
    """Whatever a response says: a cost of zero or more, or no usage at all."""
    adapter = ADAPTERS.get(api, ADAPTERS["openai"])
    priced = BOOK.find("openai", "openai", "gpt-4o-mini")
    assert priced is not None
    for endpoint in adapter.endpoints:
        report = endpoint.read_usage(captured)
        assert all(type(count) is int and count >= 0 for count in report.amounts.values())
        if report.exactness is Exactness.EXACT and endpoint.read_request is not None:
            with contextlib.suppress(ValueError):  # contradicts itself: charged as estimated
                assert priced.cost(report, NOW_MS) >= 0


def fuzz_key(data: bytes) -> None:
    """Headers with keys: one that stands there, or a refusal."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    headers = {name: value for name, _, value in (line.partition(":") for line in lines)}
    try:
        key = read_credential(headers)
    except CredentialError:
        return
    assert key
    assert key == key.strip()
    assert any(key in value for value in headers.values())
    others = {
        value.strip()
        for name, value in headers.items()
        if name in ("x-api-key", "api-key", "x-goog-api-key")
    }
    assert others <= {key, ""}, "two keys are none"
    assert len(hash_key(key)) == len("sha256:") + 64


def fuzz_config(data: bytes) -> None:
    """A config: every error with its path, or limits that are amounts."""
    try:
        config = parse(data.decode("utf-8", "replace"), source="fuzz", base=Path("/nowhere"))
    except ConfigError as error:
        assert error.errors
        assert all(error.errors)
        return
    policies = policies_of(config)
    prices_of(config)
    assert all(0 <= budget.limit <= 2**52 for budget in policies.budgets)
    for name, agent in policies.agents.items():
        assert name == agent.name


TARGETS: dict[str, Callable[[bytes], None]] = {
    "body": fuzz_body,
    "entry": fuzz_entry,
    "key": fuzz_key,
    "config": fuzz_config,
}
