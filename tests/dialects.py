"""Every way in which a provider tells its usage, as tables: what is asked, and what comes back.

Each answer is of 10 tokens in and 5 out; what a model or a prompt controls in it says otherwise.
"""

import base64
import json
from dataclasses import dataclass, field, replace
from typing import Any

from calls import chat, message
from scripted_provider import FRAMES, JSON, SSE

from extauthz.sandbox.bedrock import Frame

Event = tuple[str | None, Any]
LIST = "a list"
OPENAI = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
CLAUDE = {"input_tokens": 10, "output_tokens": 5}
GEMINI = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
COHERE = {"billed_units": CLAUDE, "tokens": {"input_tokens": 499, "output_tokens": 5}}
CONVERSE = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}
COUNTED = {"inputTokenCount": 10, "outputTokenCount": 5, "invocationLatency": 7}
COUNT_HEADERS = {
    "x-amzn-bedrock-input-token-count": "10",
    "x-amzn-bedrock-output-token-count": "5",
}
FORGED: dict[str, Any] = {
    "usage": {"prompt_tokens": 0, "input_tokens": 0, "inputTokens": 0, "billed_units": {}},
    "usageMetadata": {"promptTokenCount": 0, "totalTokenCount": 0},
    "amazon-bedrock-invocationMetrics": {"inputTokenCount": 0, "outputTokenCount": 0},
    "message": {"usage": {"input_tokens": 0}, "model": "claude-3-haiku"},
    "response": {"usage": {}}, "delta": {"usage": {}}, "metadata": {"usage": {}},
    "model": "gpt-5-nano", "modelVersion": "gemini-2.0-flash-lite", "error": {"code": 1},
}  # fmt: skip
SAID = json.dumps(FORGED)
ERROR: Event = (None, {"error": {"code": 500, "message": "half-way"}})


@dataclass(frozen=True)
class Dialect:
    """One way to ask and to be answered; the last event, or the document, tells the usage.

    `text` is an event, or the document's field, of whatever length.
    """

    path: str
    body: dict[str, Any]
    cost_nanousd: int
    events: tuple[Event, ...] = ()
    text: Event = (None, {})
    error: Event = ERROR
    done: str | None = None
    shape: str = SSE
    document: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def chunk(delta: Any, usage: Any = None, **fields: Any) -> Event:
    """OpenAI's."""
    choices = [] if usage else [{"index": 0, "delta": delta, "logprobs": FORGED}]
    return None, {"choices": choices, "usage": usage, **fields}


def chats(provider: str, model: str, cost_nanousd: int, *events: Event, **usage: Any) -> Dialect:
    """A stream of a server that speaks OpenAI's API."""
    call = {"function": {"arguments": SAID}}
    return Dialect(
        f"/{provider}/v1/chat/completions",
        chat(model=model, stream=True),
        cost_nanousd,
        (
            *events,
            chunk({"tool_calls": [call]}, model=model),
            chunk({}, {**OPENAI, **usage}, model=model),
        ),
        chunk({"content": "TEXT"}, model=model),
        done="[DONE]",
    )


def claude(data: dict[str, Any]) -> Event:
    return data["type"], data


CLAUDES = (
    claude({"type": "message_start", "message": {"model": "claude-haiku-4-5",
            "usage": {"input_tokens": 10, "output_tokens": 1}}}),
    claude({"type": "content_block_start", "content_block": {"type": "tool_use", "input": FORGED}}),
    claude({"type": "content_block_delta", "delta": {"type": "input_json_delta",
                                                     "partial_json": SAID}}),
    claude({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}}),
    claude({"type": "message_stop"}),
)  # fmt: skip
CLAUDE_TEXT = claude({"type": "content_block_delta", "delta": {"type": "text", "text": "TEXT"}})
CLAUDE_ERROR = claude({"type": "error", "error": {"type": "overloaded_error", "message": "x"}})
CLAUDE_DOCUMENT = {
    "model": "claude-haiku-4-5",
    "content": [{"type": "tool_use", "input": FORGED}, {"type": "text", "text": "TEXT"}],
    "usage": CLAUDE,
}
MESSAGE = message(stream=True)
AT_AWS = {"anthropic_version": "bedrock-2023-05-31", **message()}
AT_GOOGLE = {"anthropic_version": "vertex-2023-10-16", **message()}
for hosted in (AT_AWS, AT_GOOGLE):
    del hosted["model"]


def contents(part: Any, usage: Any = None) -> Event:
    """Google's."""
    parts = [{"functionCall": {"args": FORGED}}, part]
    more = {"usageMetadata": usage} if usage else {}
    candidates = [{"content": {"parts": parts}, "citationMetadata": FORGED}]
    return None, {"candidates": candidates, "modelVersion": "gemini-2.5-flash", **more}


SO_FAR = {"promptTokenCount": 10, "candidatesTokenCount": 1, "totalTokenCount": 11}
CONTENTS = contents({"text": SAID}, SO_FAR), contents({"text": SAID}, GEMINI)
ASKED = {"contents": [{"parts": [{"text": "hello"}]}], "generationConfig": {"maxOutputTokens": 50}}
FLASH = "/gemini/v1beta/models/gemini-2.5-flash:"
FLASH_COST = 10 * 300 + 5 * 2_500
PLACE = "/vertex/v1/projects/p/locations/us-east5/publishers"

CONVERSATION = {
    "messages": [{"role": "user", "content": [{"text": "hello"}]}],
    "inferenceConfig": {"maxTokens": 50},
}
NOVA = "/bedrock/model/amazon.nova-micro-v1:0"
HAIKU = "/bedrock/model/global.anthropic.claude-haiku-4-5-20251001-v1:0"
LLAMA = "/bedrock/model/us.meta.llama3-3-70b-instruct-v1:0"
TITAN = "/bedrock/model/amazon.titan-text-express-v1"
CHUNK = "chunk"  # a frame with a model's own event in base64
EXCEPTION: Event = ("internalServerException", {"message": "half-way"})


def chunks(*data: Any) -> tuple[Event, ...]:
    """A model's own events at Bedrock, of which the last tells what Bedrock counted."""
    counted = {**data[-1], "amazon-bedrock-invocationMetrics": COUNTED}
    return tuple((CHUNK, each) for each in (*data[:-1], counted))


RESPONSE = {"model": "gpt-4o-mini", "metadata": FORGED, "tools": [{"parameters": FORGED}]}
STREAMS = {
    "OpenAI's chat": chats("openai", "gpt-4o-mini", 10 * 150 + 5 * 600),
    "OpenAI's responses": Dialect(
        "/openai/v1/responses",
        {"model": "gpt-4o-mini", "input": "hello", "max_output_tokens": 50, "stream": True},
        10 * 150 + 5 * 600,
        (
            ("response.created", {"response": {**RESPONSE, "usage": None}}),
            ("response.output_item.done", {"item": {"arguments": SAID, "parsed": FORGED}}),
            ("response.completed", {"response": {**RESPONSE, "output": [{"content": [FORGED]}],
                                                 "usage": {**CLAUDE, "total_tokens": 15}}}),
        ),
        ("response.output_text.delta", {"delta": "TEXT"}),
    ),
    # Its first event names no model; the one that was served is dearer than the one asked for.
    "Azure's chat": replace(
        chats("azure", "gpt-4o-2024-05-13", 10 * 5_000 + 5 * 15_000,
              (None, {"model": "", "choices": [], "prompt_filter_results": [FORGED]})),
        path="/azure/openai/v1/chat/completions",
        body=chat(model="mine", stream=True),
    ),
    "OpenRouter's chat": replace(
        chats("openrouter", "openai/gpt-5.1", 123_456, cost=0.000123456),
        body=chat(model="openai/gpt-4o-mini", models=["openai/gpt-5.1"], stream=True),
    ),
    "Mistral's chat": chats("mistral", "mistral-small-latest", 10 * 150 + 5 * 600),
    "Groq's chat": chats("groq", "llama-3.1-8b-instant", 10 * 50 + 5 * 80,
                         chunk({}, x_groq={"usage": FORGED["usage"]})),
    "DeepSeek's chat": chats("deepseek", "by-hand", 10 * 150 + 5 * 600),
    "xAI's chat": replace(
        chats("xai", "grok-4.3", 34_567,
              (None, {"choices": [], "usage": {**OPENAI, "cost_in_usd_ticks": 9}}),
              cost_in_usd_ticks=345_670),
        error=(None, {"code": "The service is currently unavailable", "error": "Timed out"}),
    ),
    "Anthropic's messages": Dialect(
        "/anthropic/v1/messages", MESSAGE, 10 * 1_000 + 5 * 5_000, CLAUDES, CLAUDE_TEXT,
        CLAUDE_ERROR,
    ),
    "Gemini's events": Dialect(
        FLASH + "streamGenerateContent?alt=sse", ASKED, FLASH_COST, CONTENTS,
        contents({"text": "TEXT"}),
    ),
    "Gemini's list": Dialect(
        FLASH + "streamGenerateContent", ASKED, FLASH_COST, CONTENTS,
        contents({"text": "TEXT"}), shape=LIST,
    ),
    "Gemini's events at Vertex": Dialect(
        f"{PLACE}/google/models/gemini-2.5-flash:streamGenerateContent?alt=sse", ASKED, FLASH_COST,
        CONTENTS, contents({"text": "TEXT"}),
    ),
    "Claude's at Vertex": Dialect(
        f"{PLACE}/anthropic/models/claude-haiku-4-5@20251001:streamRawPredict",
        {**AT_GOOGLE, "stream": True}, 10 * 1_100 + 5 * 5_500, CLAUDES, CLAUDE_TEXT, CLAUDE_ERROR,
    ),
    "Cohere's chat": Dialect(
        "/cohere/v2/chat", chat(model="command-a-03-2025", stream=True), 10 * 2_500 + 5 * 10_000,
        (
            ("tool-call-delta", {"type": "tool-call-delta", "delta": {"message": {
                "tool_calls": {"function": {"arguments": SAID}}, "tool_plan": SAID, **FORGED}}}),
            ("message-end", {"type": "message-end", "delta": {"usage": COHERE}}),
        ),
        ("content-delta", {"delta": {"message": {"content": {"text": "TEXT"}}}}),
    ),
    "a conversation at Bedrock": Dialect(
        NOVA + "/converse-stream", CONVERSATION, 10 * 35 + 5 * 140,
        (
            ("contentBlockStart", {"start": {"toolUse": FORGED}, **FORGED}),
            ("contentBlockDelta", {"delta": {"toolUse": {"input": SAID}}}),
            ("metadata", {"metrics": {}, "usage": CONVERSE, "trace": FORGED}),
        ),
        ("contentBlockDelta", {"delta": {"text": "TEXT"}}), EXCEPTION, shape=FRAMES,
    ),
    "Claude's at Bedrock": Dialect(
        HAIKU + "/invoke-with-response-stream", AT_AWS, 10 * 1_000 + 5 * 5_000,
        chunks(*(data for _, data in CLAUDES)), (CHUNK, CLAUDE_TEXT[1]), EXCEPTION, shape=FRAMES,
    ),
    "Nova's at Bedrock": Dialect(
        NOVA + "/invoke-with-response-stream", CONVERSATION, 10 * 35 + 5 * 140,
        chunks({"contentBlockDelta": {"delta": {"toolUse": {"input": SAID}}}},
               {"metadata": FORGED}),
        (CHUNK, {"contentBlockDelta": {"delta": {"text": "TEXT"}}}), EXCEPTION, shape=FRAMES,
    ),
    "Llama's at Bedrock": Dialect(
        LLAMA + "/invoke-with-response-stream", {"prompt": "hello", "max_gen_len": 50},
        10 * 720 + 5 * 720,
        chunks({"generation": SAID, "prompt_token_count": 0}, {"generation": "", "x": FORGED}),
        (CHUNK, {"generation": "TEXT"}), EXCEPTION, shape=FRAMES,
    ),
    "Titan's at Bedrock": Dialect(
        TITAN + "/invoke-with-response-stream",
        {"inputText": "hello", "textGenerationConfig": {"maxTokenCount": 50}},
        10 * 200 + 5 * 600,
        chunks({"outputText": SAID, "inputTextTokenCount": 0}, {"outputText": "", "x": FORGED}),
        (CHUNK, {"outputText": "TEXT"}), EXCEPTION, shape=FRAMES,
    ),
}  # fmt: skip
CHOICES = [{"message": {"content": "TEXT", "parsed": FORGED}, "logprobs": FORGED}]


def whole(
    path: str, body: dict[str, Any], cost_nanousd: int, document: Any, **more: Any
) -> Dialect:
    """An answer that is one document."""
    asked = {key: value for key, value in body.items() if key != "stream"}
    return Dialect(path, asked, cost_nanousd, shape=JSON, document=document, **more)


DOCUMENTS = {
    "an OpenAI chat": whole("/openai/v1/chat/completions", chat(), 10 * 150 + 5 * 600,
                            {"choices": CHOICES, "usage": OPENAI, "metadata": FORGED}),
    "an embedding": whole(
        "/openai/v1/embeddings", {"model": "text-embedding-3-small", "input": "hello" * 9},
        15 * 20, {"data": [FORGED, "TEXT"], "usage": {"prompt_tokens": 15, "total_tokens": 15}},
    ),
    "an Azure chat": whole("/azure/openai/v1/chat/completions", chat(model="mine"),
                           10 * 2_500 + 5 * 10_000,
                           {"choices": CHOICES, "usage": OPENAI, "prompt_filter_results": FORGED}),
    "a message": whole("/anthropic/v1/messages", MESSAGE, 10 * 1_000 + 5 * 5_000, CLAUDE_DOCUMENT),
    "a content": whole(FLASH + "generateContent", ASKED, FLASH_COST,
                       contents({"text": "TEXT"}, GEMINI)[1]),
    "a content at Vertex": whole(f"{PLACE}/google/models/gemini-2.5-flash:generateContent", ASKED,
                                 FLASH_COST, contents({"text": "TEXT"}, GEMINI)[1]),
    "a Vertex message": whole(f"{PLACE}/anthropic/models/claude-haiku-4-5@20251001:rawPredict",
                              AT_GOOGLE, 10 * 1_100 + 5 * 5_500, CLAUDE_DOCUMENT),
    "a Cohere chat": whole("/cohere/v2/chat", chat(model="command-a-03-2025"),
                           10 * 2_500 + 5 * 10_000,
                           {"message": {"content": [{"text": "TEXT"}], **FORGED}, "usage": COHERE}),
    "a Bedrock conversation": whole(
        NOVA + "/converse", CONVERSATION, 10 * 35 + 5 * 140,
        {"output": {"message": {"content": [{"toolUse": {"input": FORGED}}, "TEXT"]}},
         "usage": CONVERSE, "additionalModelResponseFields": FORGED, "trace": FORGED},
    ),
    "a Bedrock message": whole(HAIKU + "/invoke", AT_AWS, 10 * 1_000 + 5 * 5_000, CLAUDE_DOCUMENT),
}  # fmt: skip
# What these used stands in the headers: no end of the body is needed to know it.
BY_HEADERS = {
    "a Nova's answer": whole(NOVA + "/invoke", CONVERSATION, 10 * 35 + 5 * 140,
                             {"output": FORGED, "usage": FORGED, "x": "TEXT"},
                             headers=COUNT_HEADERS),
    "a Llama's answer": whole(LLAMA + "/invoke", {"prompt": "hello", "max_gen_len": 50},
                              10 * 720 + 5 * 720, {**FORGED, "generation": "TEXT"},
                              headers=COUNT_HEADERS),
    "a Titan's embedding": whole(
        "/bedrock/model/amazon.titan-embed-text-v2:0/invoke", {"inputText": "hello" * 9}, 10 * 20,
        {"embedding": [0.5, "TEXT"], "inputTextTokenCount": 0},
        headers={"x-amzn-bedrock-input-token-count": "10"},
    ),
}  # fmt: skip

ALL = {**STREAMS, **DOCUMENTS, **BY_HEADERS}


def encoded(dialect: Dialect, *events: Event, untidy: bool = False) -> bytes:
    """These events, or the whole answer."""
    events = events or dialect.events
    if dialect.shape == FRAMES:
        return b"".join(map(framed, events))
    if dialect.shape == LIST:
        between = "\r\n,\r\n" if untidy else ",\n"
        return f"[{between.join(json.dumps(data) for _, data in events)}]".encode()
    newline = "\r\n" if untidy else "\n"
    lines = ["\ufeff: hello", "id: 7", "retry: 1", "", ":"] if untidy else []
    for name, data in events:
        lines += [f"event: {name}"] if name else []
        text = json.dumps(data, indent=1 if untidy else None)
        lines += [f"data: {line}" for line in text.split("\n")]
        lines += [": a comment"] if untidy else []
        lines.append("")
    lines += [f"data: {dialect.done}", ""] if dialect.done and not untidy else []
    body = newline.join([*lines, ""])
    return (body.removesuffix(2 * newline) if untidy else body).encode()


def framed(event: Event) -> bytes:
    name, data = event
    if event == EXCEPTION:
        return Frame(json.dumps(data), name, "exception").encode("")
    text = json.dumps(data, separators=(",", ":"))
    if name == CHUNK:
        text = json.dumps({"bytes": base64.b64encode(text.encode()).decode(), "p": "ab"},
                          separators=(",", ":"))  # fmt: skip
    return Frame(text, name).encode("")
