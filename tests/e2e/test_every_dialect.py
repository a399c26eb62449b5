"""Every provider's answers, in every way in which they can come over the wire, and at every price.

All calls are made at once, before the first test; each has an agent of its own.
"""

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPException
from typing import Any

import pytest
import zstandard
from calls import chat, message, post
from dialects import (
    ALL,
    ASKED,
    BY_HEADERS,
    CHOICES,
    CLAUDES,
    CONVERSATION,
    DOCUMENTS,
    HAIKU,
    LIST,
    OPENAI,
    STREAMS,
    Dialect,
    contents,
    encoded,
    whole,
)
from scripted_provider import JSON, Answer, by_byte, scripted_provider, stored_brotli
from sidecar import Sidecar, agent, nanousd, running_sidecar

MB = 1_000_000


def of_length(value: Any, size: int) -> Any:
    """With a text that long, that nearly tells a usage."""
    text = ('"usage":{\\' * (size // 10 + 1))[:size]
    return json.loads(json.dumps(value).replace('"TEXT"', json.dumps(text)))


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def streamed(dialect: Dialect) -> dict[str, Answer]:
    """A stream in every way in which it ends well."""
    large = of_length(dialect.text, MB)
    events = (*dialect.events[:-1], (large[0], large[1]), dialect.events[-1])
    plain = encoded(dialect)
    pieces = {
        "by byte": by_byte(plain),
        "untidy": in_pieces(encoded(dialect, untidy=True), 7),
        "1 MB": in_pieces(encoded(dialect, *events), 50_000),
    }
    kind = JSON if dialect.shape == LIST else dialect.shape
    answers = {way: Answer(each, kind) for way, each in pieces.items()}
    return answers | otherwise(Answer([plain], kind), dialect)


def documented(dialect: Dialect) -> dict[str, Answer]:
    """A document in every way in which it ends well."""
    plain = json.dumps(of_length(dialect.document, 99)).encode()
    untidy = json.dumps(of_length(dialect.document, 99), indent=2).replace("\n", "\r\n").encode()
    large = json.dumps(of_length(dialect.document, MB)).encode()
    pieces = {
        "by byte": by_byte(plain), "untidy": in_pieces(untidy, 7), "1 MB": in_pieces(large, 50_000)
    }  # fmt: skip
    answers = {way: Answer(each, headers=dialect.headers) for way, each in pieces.items()}
    return answers | otherwise(Answer([plain], headers=dialect.headers), dialect)


def otherwise(answer: Answer, dialect: Dialect) -> dict[str, Answer]:
    """Compressed in some way, though nobody asked for it; and until the provider closes."""
    codings = {"gzip": gzip.compress, "br": stored_brotli, "zstd": zstandard.compress}
    number = [one for one in ALL.values() if one.shape == dialect.shape].index(dialect)
    coding = list(codings)[number % len(codings)]
    body = codings[coding](b"".join(answer.pieces))
    packed = replace(answer, pieces=in_pieces(body, 11), encoding=coding)
    return {coding: packed, **({} if number else {"over HTTP/1.0": replace(answer, http1_0=True)})}


def ended_badly(dialect: Dialect) -> dict[str, Answer]:
    """A stream that was cut before its last event, or ended in an error in its place."""
    kind = JSON if dialect.shape == LIST else dialect.shape
    before = encoded(replace(dialect, done=None), *dialect.events[:-1])
    before = before.removesuffix(b"]") if dialect.shape == LIST else before
    if dialect.events[0] == CLAUDES[0]:  # (only the last but one tells the answer's tokens)
        before = encoded(dialect, *dialect.events[:-2])
    wrong = encoded(dialect, *dialect.events[:1], dialect.error)
    return {
        "cut": Answer([before], kind, ends=False),
        "cut in the middle": Answer([encoded(dialect)[:-40]], kind, ends=False),
        "an error": Answer([wrong], kind),
    }


GPT = "/openai/v1/chat/completions"
CLAUDE = {"input_tokens": 10, "output_tokens": 5}
WRITTEN = {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4}
CACHED = {**CLAUDE, "cache_read_input_tokens": 7, "cache_creation": WRITTEN,
          "cache_creation_input_tokens": 7}  # fmt: skip
HEARD = [{"modality": "TEXT", "tokenCount": 4}, {"modality": "AUDIO", "tokenCount": 6}]


def gpt(asked: str, cost_nanousd: int, usage: dict[str, Any] = OPENAI, **said: Any) -> Dialect:
    return whole(GPT, chat(model=asked), cost_nanousd, {"choices": CHOICES, "usage": usage, **said})


def haiku(cost_nanousd: int, usage: dict[str, Any], **said: Any) -> Dialect:
    document = {"content": [], "model": "claude-haiku-4-5-20251001", "usage": usage, **said}
    return whole("/anthropic/v1/messages", message(), cost_nanousd, document)


def gemini(asked: str, cost_nanousd: int, served: str, **usage: Any) -> Dialect:
    told = {"promptTokenCount": 10, "candidatesTokenCount": 5, **usage}
    total = {"totalTokenCount": told["promptTokenCount"] + 5 + told.get("thoughtsTokenCount", 0)}
    document = contents({"text": "TEXT"}, {**total, **told})[1] | {"modelVersion": served}
    path = f"/gemini/v1beta/models/{asked}:generateContent"
    return whole(path, ASKED, cost_nanousd, document)


# The rates are those of the providers' price pages, in nano-USD a token.
PRICED = {
    "the snapshot behind an alias": gpt("gpt-4o", 10 * 2_500 + 5 * 10_000,
                                        model="gpt-4o-2024-08-06"),
    "a dearer snapshot": gpt("gpt-4o", 10 * 5_000 + 5 * 15_000, model="gpt-4o-2024-05-13"),
    "a dearer model": gpt("gpt-4o-mini", 10 * 2_500 + 5 * 10_000, model="gpt-4o"),
    "a cheaper model": gpt("gpt-4o", 10 * 150 + 5 * 600, model="gpt-4o-mini-2024-07-18"),
    "a model that no list has": gpt("gpt-4o", 10 * 2_500 + 5 * 10_000, model="gpt-of-tomorrow"),
    "no model": gpt("gpt-4o", 10 * 2_500 + 5 * 10_000),
    "an override": gpt("by-hand", 10 * 7_000 + 5 * 9_000, model="gpt-4o"),
    "an override of nothing": gpt("for-nothing", 0, model="for-nothing"),
    "the default for what no list has": gpt("gpt-of-tomorrow", 10 * 50_000 + 5 * 200_000),
    "priority": gpt("gpt-4o", 10 * 4_250 + 5 * 17_000, service_tier="priority"),
    "flex": gpt("gpt-5", 10 * 625 + 5 * 5_000, service_tier="flex"),
    "the default tier": gpt("gpt-4o", 10 * 2_500 + 5 * 10_000, service_tier="default"),
    "reasoning, and what was read from the cache": gpt(
        "gpt-5", 6 * 1_250 + 4 * 125 + 5 * 10_000,
        {**OPENAI, "prompt_tokens_details": {"cached_tokens": 4},
         "completion_tokens_details": {"reasoning_tokens": 3}},
    ),
    "a cache written for five minutes and for an hour": haiku(
        10 * 1_000 + 7 * 100 + 3 * 1_250 + 4 * 2_000 + 5 * 5_000, CACHED
    ),
    "a dearer Claude": haiku(10 * 15_000 + 5 * 75_000, CLAUDE, model="claude-opus-4-1-20250805"),
    "Claude in the US": haiku(11 * (10 * 1_000 + 5 * 5_000) // 10,
                              {**CLAUDE, "inference_geo": "us"}),
    "a dearer Gemini": gemini("gemini-2.5-flash", 10 * 1_250 + 5 * 10_000, "gemini-2.5-pro"),
    "a long context": gemini("gemini-2.5-pro", 200_001 * 2_500 + 5 * 15_000, "gemini-2.5-pro",
                             promptTokenCount=200_001),
    "the last of a short one": gemini("gemini-2.5-pro", 200_000 * 1_250 + 5 * 10_000,
                                      "gemini-2.5-pro", promptTokenCount=200_000),
    "what Gemini heard and thought": gemini(
        "gemini-2.5-flash", 4 * 300 + 6 * 1_000 + (5 + 7) * 2_500, "gemini-2.5-flash",
        promptTokensDetails=HEARD, thoughtsTokenCount=7,
    ),
    "what Gemini read from its cache": gemini(
        "gemini-2.5-flash", 6 * 300 + 4 * 30 + 5 * 2_500, "gemini-2.5-flash",
        cachedContentTokenCount=4,
    ),
    "a cache at Bedrock": whole(
        HAIKU + "/converse", CONVERSATION,
        10 * 1_000 + 7 * 100 + 3 * 1_250 + 5 * 5_000,
        {"usage": {"inputTokens": 10, "outputTokens": 5, "cacheReadInputTokens": 7,
                   "cacheWriteInputTokens": 3, "totalTokens": 25}},
    ),
    "nothing, says Claude": haiku(0, {"input_tokens": 0, "output_tokens": 0}),
    "nothing, says Gemini": gemini("gemini-2.5-flash", 0, "gemini-2.5-flash", promptTokenCount=0,
                                   candidatesTokenCount=0, totalTokenCount=0),
    "nothing, says Cohere": whole(
        "/cohere/v2/chat", chat(model="command-a-03-2025"), 0,
        {"usage": {"billed_units": {"input_tokens": 0, "output_tokens": 0}}},
    ),
    "nothing, says Bedrock": whole(
        HAIKU + "/converse", CONVERSATION, 0,
        {"usage": {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}},
    ),
    "a search by the call": whole(
        "/perplexity/v1/chat/completions", chat(model="sonar"),
        10 * 1_000 + 5 * 1_000 + 12_000_000, {"choices": CHOICES, "usage": OPENAI},
    ),
}  # fmt: skip


CASES: dict[tuple[str, str], tuple[Dialect, Answer]] = {}
for what, dialect in PRICED.items():
    document = json.dumps(dialect.document).encode()
    CASES[what, "priced"] = dialect, Answer([document], headers=dialect.headers)
for what, dialect in STREAMS.items():
    CASES |= {(what, way): (dialect, answer) for way, answer in streamed(dialect).items()}
for what, dialect in {**DOCUMENTS, **BY_HEADERS}.items():
    CASES |= {(what, way): (dialect, answer) for way, answer in documented(dialect).items()}
WELL = list(CASES)
for what, dialect in STREAMS.items():
    CASES |= {(what, way): (dialect, answer) for way, answer in ended_badly(dialect).items()}
for what, dialect in DOCUMENTS.items():
    half = json.dumps(of_length(dialect.document, 99))[:-30].encode()
    CASES[what, "cut"] = dialect, Answer([half], ends=False)
BADLY = [case for case in CASES if case not in WELL]
NAMES = {case: f"case{number}" for number, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """With every case's call made and settled."""
    agents: dict[str, Any] = {}
    for name in NAMES.values():
        agents |= agent(name, "1000.00")
    token = tmp_path_factory.mktemp("secrets") / "token"
    token.write_text("a-token\n")
    price = {"provider": "deepseek", "model": "by-hand", "input": "0.15", "output": "0.60"}
    prices = [
        price,
        {"provider": "openai", "model": "by-hand", "input": 7, "output": 9},
        {"provider": "openai", "model": "for-nothing", "input": 0, "output": 0},
        {"provider": "openai", "model": "*", "input": 50, "output": 200, "fallback": True},
    ]
    with scripted_provider([answer for _, answer in CASES.values()]) as url:
        providers: dict[str, Any] = {
            api: {"api": api, "upstream": url, "credential": {"file": str(token)}}
            for api in (
                "openai", "azure", "openrouter", "mistral", "groq", "deepseek", "xai", "gemini",
                "vertex", "cohere", "bedrock", "perplexity",
            )
        }  # fmt: skip
        providers["azure"]["deployments"] = {"mine": "gpt-4o"}
        providers["anthropic"] = {"upstream": url}
        with running_sidecar(agents=agents, start=False) as running:
            running.config["providers"] |= {
                name: {**running.config["providers"].get(name, {}), **block}
                for name, block in providers.items()
            }
            running.config["providers"]["openai"]["credential"] = {"file": str(token)}
            running.config["prices"] = prices
            running.start()
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(lambda case: _call(running, case), CASES))
            running.until_settled()
            yield running


def _call(sidecar: Sidecar, case: tuple[str, str]) -> None:
    dialect, _ = CASES[case]
    number = str(list(CASES).index(case))
    with suppress(HTTPException, OSError):
        post(sidecar, NAMES[case], dialect.body, path=dialect.path, x_case=number)


@pytest.fixture(scope="module")
def settlements(sidecar: Sidecar) -> dict[str, dict[str, Any]]:
    return {line["agent"]: line for line in sidecar.log_lines("settlement")}


@pytest.fixture(scope="module")
def decisions(sidecar: Sidecar) -> dict[str, dict[str, Any]]:
    return {line["agent"]: line for line in sidecar.log_lines("decision")}


@pytest.fixture(scope="module")
def spent(sidecar: Sidecar) -> dict[str, int]:
    """By agent, in nano-USD; nothing is held."""
    budgets = sidecar.standing()["budgets"]
    assert all(nanousd(budget["held"]) == 0 for budget in budgets)
    return {budget["name"]: nanousd(budget["spent"]) for budget in budgets}


@pytest.mark.parametrize("case", WELL, ids=", ".join)
def test_what_was_told_is_spent_to_the_nanodollar(
    case: tuple[str, str],
    spent: dict[str, int],
    settlements: dict[str, dict[str, Any]],
    decisions: dict[str, dict[str, Any]],
) -> None:
    name = NAMES[case]
    assert decisions[name]["decision"] == "allow", decisions[name]
    assert (settlements[name]["outcome"], settlements[name]["exactness"]) == ("settled", "exact")
    assert spent[name] == CASES[case][0].cost_nanousd


@pytest.mark.parametrize("case", BADLY, ids=", ".join)
def test_what_did_not_end_well_is_spent_as_reserved(
    case: tuple[str, str],
    spent: dict[str, int],
    settlements: dict[str, dict[str, Any]],
    decisions: dict[str, dict[str, Any]],
) -> None:
    name = NAMES[case]
    assert settlements[name]["outcome"] == "settled"
    assert settlements[name]["exactness"] in ("unknown", "lower_bound")
    assert spent[name] == nanousd(decisions[name]["estimate_usd"]) > CASES[case][0].cost_nanousd
