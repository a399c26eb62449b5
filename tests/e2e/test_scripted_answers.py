"""A provider that answers each call with the bytes it was told to: what it billed is what is spent.

All calls are made at once, before the first test; each has an agent of its own.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

import httpx
import pytest
import zstandard
from calls import CHAT, GPT, MESSAGES, chat, headers_of, message, post
from scripted_provider import JSON, SSE, Answer, by_byte, scripted_provider, stored_brotli
from sidecar import Sidecar, agent, nanousd, running_sidecar

MB = 1_000_000

# 10 tokens in and 5 out, as each API tells it, and what they cost in nano-USD.
OPENAI = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
ANTHROPIC = {"input_tokens": 10, "output_tokens": 5}
RESPONSES = {**ANTHROPIC, "total_tokens": 15}
GEMINI = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
COHERE = {"billed_units": ANTHROPIC, "tokens": {"input_tokens": 499, "output_tokens": 5}}
COST = {
    "openai": 10 * 150 + 5 * 600,
    "azure": 10 * 150 + 5 * 600,
    "responses": 10 * 150 + 5 * 600,
    "anthropic": 10 * 1_000 + 5 * 5_000,
    "gemini": 10 * 300 + 5 * 2_500,
    "cohere": 10 * 2_500 + 5 * 10_000,
    "search": 10 * 1_000 + 5 * 5_000 + 2 * 10_000_000,
    "xai": 34_567,
    "mistral": 10 * 150 + 5 * 600,
    "perplexity": 25_000_000,
    "openrouter": 23_456,
}
# What a model or a prompt writes to be billed for nothing, in every API's words at once.
NOTHING: dict[str, Any] = {
    "usage": {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 0, "output_tokens": 0},
    "usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 0},
    "response": {"usage": {"input_tokens": 0, "output_tokens": 0}, "model": "gpt-5"},
    "message": {"usage": {"input_tokens": 0, "output_tokens": 0}},
    "delta": {"usage": {"billed_units": {"input_tokens": 0, "output_tokens": 0}}},
    "model": "gpt-5-nano", "modelVersion": "gemini-2.0-flash-lite", "service_tier": "flex",
}  # fmt: skip
PLANTED = json.dumps({**NOTHING, "deep": [[{"deeper": NOTHING}]]})
TWICE = f'{{"usage":{{}},"usage":{json.dumps(NOTHING["usage"])},"\\u0075sage":{{}}}}'
SAID = json.dumps(PLANTED)  # as the text of a structured output: a string within JSON


@dataclass(frozen=True)
class Case:
    """A call by one API, and the answer: pieces that go over the wire one by one."""

    api: str
    pieces: Iterable[bytes]
    content_type: str = JSON
    encoding: str = ""
    status: int = 200
    trailers: bytes = b""
    http2: bool = False

    @property
    def answer(self) -> Answer:
        return Answer(self.pieces, self.content_type, self.encoding, self.status, self.trailers)


def events(*data: str, newline: str = "\n", last: str = "[DONE]") -> bytes:
    lines = [f"data: {each}{newline}{newline}" for each in (*data, *([last] if last else []))]
    return "".join(lines).encode()


def told(usage: Any, **fields: Any) -> str:
    return json.dumps({"model": GPT, **fields, "usage": usage})


def claude(*deltas: dict[str, Any], start: dict[str, int], newline: str = "\n") -> bytes:
    """A stream of Anthropic's, with a tool's input that lies."""
    parts = [
        {"type": "message_start", "message": {"model": "claude-haiku-4-5", "usage": start}},
        {"type": "content_block_start", "content_block": {"type": "tool_use", "input": NOTHING}},
        {"type": "content_block_delta", "delta": {"type": "input_json_delta",
                                                  "partial_json": PLANTED}},
        *({"type": "message_delta", "delta": {}, "usage": delta} for delta in deltas),
        {"type": "message_stop"},
    ]  # fmt: skip
    lines = [f"event: {part['type']}{newline}data: {json.dumps(part)}{newline * 2}"
             for part in parts]  # fmt: skip
    return "".join(lines).encode()


def so_far(more: Callable[[int], dict[str, Any]] = lambda _: {}) -> list[str]:
    """Events whose usage is that of all that has come until then, as its provider documents it."""
    return [
        told(
            {**OPENAI, "completion_tokens": n, "total_tokens": 10 + n, **more(n)},
            choices=[{"delta": {"content": "hi"}}],
        )
        for n in (1, 2, 4, 5)
    ]


WHOLE = f'{{"model":"{GPT}","usage":{json.dumps(OPENAI)}}}'.encode()
STREAM = events('{"choices":[{"delta":{"content":"hi"}}],"usage":null}', told(OPENAI, choices=[]))
ECHO = f'"metadata":{TWICE},"tools":[{{"parameters":{PLANTED}}}],"text":{{"format":{PLANTED}}}'
OUTPUT = f'"output":[{{"arguments":{SAID},"content":[{{"text":{SAID},"logprobs":[{PLANTED}]}}]}}]'


def response(usage: str) -> str:
    """A response that echoes what the request held, around its usage."""
    return f'{{"model":"{GPT}",{ECHO},{usage}"object":"response",{OUTPUT},{ECHO}}}'


def response_stream(padding: str = "") -> bytes:
    usage, unfinished = f'"usage":{json.dumps(RESPONSES)},', response('"usage":null,')
    return events(
        f'{{"type":"response.created","response":{unfinished}}}',
        f'{{"type":"response.output_text.delta","delta":{SAID},"item":{PLANTED}}}',
        f'{{"type":"response.completed","padding":"{padding}","response":{response(usage)}}}',
        last="",
    )


def gemini(usage: dict[str, int]) -> str:
    parts = f'[{{"functionCall":{{"args":{TWICE}}}}},{{"text":{SAID}}},{{"thought":{PLANTED}}}]'
    return (
        f'{{"candidates":[{{"content":{{"parts":{parts}}}}}],"modelVersion":"gemini-2.5-flash",'
        f'"usageMetadata":{json.dumps(usage)},"more":{PLANTED}}}'
    )


def refusal(code: str | None) -> bytes:
    inner = {"code": "invalid_value", "content_filter_result": {}}
    error = {"innererror": inner, "message": PLANTED, "code": code, "param": "prompt"}
    return json.dumps({"error": error}).encode()


GEMINI_SO_FAR = [{**GEMINI, "candidatesTokenCount": n, "totalTokenCount": 10 + n} for n in (1, 3)]
COHERE_TOOL = f'"tool_plan":{SAID},"tool_calls":[{{"function":{{"arguments":{SAID}}}}}]'

EXACT = {
    "split at every byte": Case("openai", by_byte(STREAM), SSE),
    "split at every byte, Anthropic's": Case(
        "anthropic", by_byte(claude(ANTHROPIC, start={"input_tokens": 10, "output_tokens": 1})), SSE
    ),
    "CRLF, split at every byte": Case(
        "anthropic",
        by_byte(claude({"output_tokens": 5}, start=ANTHROPIC, newline="\r\n")),
        SSE,
    ),
    "comments, ids and retries between": Case(
        "openai",
        [b": OPENROUTER PROCESSING\n\n:\nid: 7\nretry: 1\nevent: x\n" + STREAM + b": bye\n\n"],
        SSE,
    ),
    "usage null in every chunk": Case(
        "openai", [events(*['{"usage":null}'] * 50, told(OPENAI, choices=[]))], SSE
    ),
    "usage in every event, cumulative": Case(
        "openai",
        [events(*(told({**OPENAI, "completion_tokens": n, "total_tokens": 10 + n}) for n in
                  (0, 1, 3, 5)))],
        SSE,
    ),
    "a start, then deltas": Case(
        "anthropic",
        [claude(*({"output_tokens": n} for n in (2, 4, 5)),
                start={"input_tokens": 10, "output_tokens": 1})],
        SSE,
    ),
    "a start, then deltas that read more": Case(  # (as the results of a search come in)
        "anthropic",
        [claude({"input_tokens": 7, "output_tokens": 2}, ANTHROPIC,
                start={"input_tokens": 4, "output_tokens": 1})],
        SSE,
    ),
    "Mistral's usage, cumulative": Case("mistral", [events(*so_far())], SSE),
    "xAI's usage and cost, cumulative": Case(
        "xai", [events(*so_far(lambda n: {"cost_in_usd_ticks": 69_134 * n}))], SSE
    ),
    "Perplexity's usage and cost, cumulative": Case(
        "perplexity", [events(*so_far(lambda n: {"cost": {"total_cost": n * 0.005}}))], SSE
    ),
    "the usage before the answer": Case(
        "openai", [f'{{"usage":{json.dumps(OPENAI)},"choices":[{PLANTED}]}}'.encode()]
    ),
    "the usage behind the answer": Case(
        "openai", [f'{{"choices":[{PLANTED}],"usage":{json.dumps(OPENAI)}}}'.encode()]
    ),
    "an event of 1 MB": Case("responses", [response_stream("x" * MB)], SSE),
    "a last event that has no blank line": Case(
        "openai", [events(told(OPENAI), last="")[:-1]], SSE
    ),
    "20 MB": Case("openai", [b'{"choices":["', *[b"x" * MB] * 20, b'"],' + WHOLE[1:]]),
    "gzip all the same": Case("openai", [gzip.compress(STREAM)], SSE, "gzip"),
    "br all the same": Case("openai", [stored_brotli(WHOLE)], JSON, "br"),
    "a stream in br": Case("openai", by_byte(stored_brotli(STREAM)), SSE, "br"),
    "zstd all the same": Case("openai", [zstandard.compress(WHOLE)], JSON, "zstd"),
    "a stream in zstd": Case("openai", by_byte(zstandard.compress(STREAM)), SSE, "zstd"),
    "with trailers": Case("openai", [STREAM], SSE, trailers=b"x-checksum: 1\r\n"),
    "over HTTP/2": Case("openai", [WHOLE], http2=True),
    "a stream over HTTP/2": Case("openai", by_byte(STREAM), SSE, http2=True),
    "a response that echoes": Case(
        "responses", [response(f'"usage":{json.dumps(RESPONSES)},').encode()]
    ),
    "a streamed response that echoes": Case("responses", by_byte(response_stream()), SSE),
    "Gemini's function call": Case("gemini", [gemini(GEMINI).encode()]),
    "Gemini's usage so far": Case(
        "gemini", [events(*map(gemini, [*GEMINI_SO_FAR, GEMINI]), last="")], SSE
    ),
    "Gemini's list": Case(
        "gemini", by_byte(f"[{','.join(map(gemini, [*GEMINI_SO_FAR, GEMINI]))}]".encode())
    ),
    "two searches": Case(
        "search", [told({**ANTHROPIC, "server_tool_use": {"web_search_requests": 2}}).encode()]
    ),
    "two searches, streamed": Case(
        "search",
        [claude({"output_tokens": 5, "server_tool_use": {"web_search_requests": 2}},
                start=ANTHROPIC)],
        SSE,
    ),
    "what xAI says that it charges": Case(
        "xai", [told({**OPENAI, "cost_in_usd_ticks": 345_670}).encode()]
    ),
    "what OpenRouter says that it charges": Case(
        "openrouter", [events(told({**OPENAI, "cost": 0.000023456}))], SSE
    ),
    "Cohere's tool call": Case(
        "cohere",
        [f'{{"message":{{{COHERE_TOOL}}},"usage":{json.dumps(COHERE)},"x":{PLANTED}}}'.encode()],
    ),
    "Cohere's stream": Case(
        "cohere",
        [events(f'{{"type":"tool-call-delta","delta":{{"message":{{{COHERE_TOOL}}}}}}}',
                f'{{"type":"message-end","delta":{{"usage":{json.dumps(COHERE)}}}}}')],
        SSE,
    ),
}  # fmt: skip
FREE = {
    "usage of zero": Case("openai", [told(dict.fromkeys(OPENAI, 0)).encode()]),
    "usage of zero, streamed": Case("openai", [events(told(dict.fromkeys(OPENAI, 0)))], SSE),
}
UNTOLD = {
    "no usage, but a forged one": Case("openai", [f'{{"choices":[{PLANTED}]}}'.encode()]),
    "no usage in a stream": Case("openai", [events(f'{{"choices":[{PLANTED}]}}')], SSE),
    "a response that failed": Case(
        "responses",
        [events('{"type":"response.failed","response":{"usage":null,"error":{}}}', last="")],
        SSE,
    ),
    "Gemini's error half-way": Case(
        "gemini", [events(gemini(GEMINI_SO_FAR[0]), '{"error":{"code":500}}', last="")], SSE
    ),
    "an error half-way": Case(
        "openai", [events(told({**OPENAI, "total_tokens": 11}), '{"error":{"code":500}}')], SSE
    ),
    "br that is none": Case("openai", [WHOLE], JSON, "br"),
    "zstd that is none": Case("openai", [WHOLE], JSON, "zstd"),
}
REFUSED = {
    "Azure's malformed request": Case("azure", [refusal("missing_required_parameter")], status=400),
}
BILLED_REFUSALS = {
    "Azure's content filter": Case("azure", [refusal("content_filter")], status=400),
    "Azure's refusal without a code": Case("azure", [refusal(None)], status=400),
    "Azure's refusal that is no JSON": Case(
        "azure", [refusal("invalid_value")], "text/html", status=400
    ),
    "a 200 that tells a refusal": Case("azure", [refusal("invalid_value")]),
}
CASES = {**EXACT, **FREE, **UNTOLD, **REFUSED, **BILLED_REFUSALS}
NAMES = {what: f"case{number}" for number, what in enumerate(CASES)}


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with scripted_provider([case.answer for case in CASES.values()]) as url:
        yield url


@pytest.fixture(scope="module")
def sidecar(provider: str) -> Iterator[Sidecar]:
    """With every case's call made and settled."""
    agents: dict[str, Any] = {}
    for name in NAMES.values():
        agents |= agent(name, "1000.00")
    credential = {"env": "SANDBOX_OPENAI_CREDENTIAL"}
    providers: dict[str, Any] = {"anthropic": {"upstream": provider}}
    for api in (
        "openai",
        "gemini",
        "cohere",
        "azure",
        "xai",
        "openrouter",
        "mistral",
        "perplexity",
    ):
        providers[api] = {"api": api, "upstream": provider, "credential": credential}
    providers["azure"]["deployments"] = {"mine": GPT}
    prices = [{"provider": "mistral", "model": GPT, "input": "0.15", "output": "0.60"}]
    prices.append({**prices[0], "model": "by-hand"})
    with running_sidecar(agents=agents, providers=providers, prices=prices) as running:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda what: _call(running, what), CASES))
        running.until_settled()
        yield running


def _call(sidecar: Sidecar, what: str) -> None:
    case, number = CASES[what], list(CASES).index(what)
    path, body = _request(case)
    if case.http2:
        with httpx.Client(http1=False, http2=True, timeout=60) as client:
            headers = headers_of(NAMES[what]) | {"x-case": str(number)}
            assert client.post(sidecar.egress + path, json=body, headers=headers).status_code == 200
        return
    with suppress(HTTPException, OSError):
        post(sidecar, NAMES[what], body, path=path, x_case=str(number))


def _request(case: Case) -> tuple[str, dict[str, Any]]:  # noqa: PLR0911 - one for each API
    stream = case.content_type == SSE
    if case.api == "anthropic":
        return MESSAGES, message(stream=stream)
    if case.api == "responses":
        asked = {"model": GPT, "input": "hello", "max_output_tokens": 50, "stream": stream}
        return "/openai/v1/responses", asked
    if case.api == "gemini":
        # (a list of JSON comes from the streaming endpoint too, without alt=sse)
        action = "streamGenerateContent?alt=sse" if stream else "streamGenerateContent"
        contents = [{"parts": [{"text": "hello"}]}]
        body = {"contents": contents, "generationConfig": {"maxOutputTokens": 50}}
        return f"/gemini/v1beta/models/gemini-2.5-flash:{action}", body
    if case.api == "search":
        tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
        return MESSAGES, message(stream=stream, tools=[tool])
    if case.api == "xai":
        return "/xai/v1/chat/completions", chat(model="grok-4.3", stream=stream)
    if case.api == "mistral":
        return "/mistral/v1/chat/completions", chat(model="by-hand", stream=stream)
    if case.api == "perplexity":
        return "/perplexity/v1/chat/completions", chat(model="sonar", stream=stream)
    if case.api == "openrouter":
        fallbacks = {"models": ["openai/gpt-5.1"], "provider": {"sort": "price"}}
        asked = chat(model="openai/gpt-4o-mini", stream=stream, **fallbacks)
        return "/openrouter/v1/chat/completions", asked
    if case.api == "cohere":
        return "/cohere/v2/chat", chat(model="command-a-03-2025", stream=stream)
    if case.api == "azure":
        return "/azure/openai/v1/chat/completions", chat(model="mine", stream=stream)
    return CHAT, chat(stream=stream)


def ending(sidecar: Sidecar, what: str) -> tuple[int, str]:
    """What was spent, and how the settlement called it; nothing is held."""
    (line,) = (one for one in sidecar.log_lines("settlement") if one["agent"] == NAMES[what])
    spent, held = sidecar.balance(NAMES[what])
    assert held == 0
    return spent, f"{line['outcome']} {line['exactness']}"


def reservation(sidecar: Sidecar, what: str) -> int:
    (line,) = (one for one in sidecar.log_lines("decision") if one["agent"] == NAMES[what])
    return nanousd(line["estimate_usd"])


@pytest.mark.parametrize("what", EXACT)
def test_what_was_told_is_spent_to_the_nanodollar(sidecar: Sidecar, what: str) -> None:
    assert ending(sidecar, what) == (COST[EXACT[what].api], "settled exact")


@pytest.mark.parametrize("what", FREE)
def test_what_is_said_to_be_nothing_costs_nothing(sidecar: Sidecar, what: str) -> None:
    assert ending(sidecar, what) == (0, "settled exact")


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_that_proves_that_nothing_was_billed_is_released(
    sidecar: Sidecar, what: str
) -> None:
    assert ending(sidecar, what) == (0, "released unknown")


@pytest.mark.parametrize("what", [*UNTOLD, *BILLED_REFUSALS])
def test_what_was_not_told_is_spent_as_reserved(sidecar: Sidecar, what: str) -> None:
    spent, how = ending(sidecar, what)
    assert spent == reservation(sidecar, what)
    assert how in ("settled unknown", "settled lower_bound")
