"""AWS Bedrock, as its SDK and its documentation know it."""

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from extauthz.sandbox.anthropic import Anthropic
from extauthz.sandbox.bedrock_native import NATIVE, Native, count_headers, metrics
from extauthz.sandbox.prices import Model, PriceTable, Usage
from extauthz.sandbox.script import Script
from extauthz.sandbox.wire import (
    Call,
    Event,
    Refusal,
    dumps,
    encode,
    pieces,
    text_tokens,
    token,
    whole_number,
)

FRAMES = "application/vnd.amazon.eventstream"
_RAW = "raw-input-of-the-sandbox"
_TYPES = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}


@dataclass(frozen=True)
class Frame(Event):
    """One message of AWS's binary event stream; `name` is the kind of event."""

    message_type: str = "event"

    def encode(self, newline: str) -> bytes:
        """The frame with its checksums."""
        del newline
        head = b""
        kind = f":{self.message_type}-type"
        values = {kind: self.name or "", ":content-type": "application/json"}
        for name, value in {**values, ":message-type": self.message_type}.items():
            head += bytes([len(name)]) + name.encode() + b"\x07"
            head += struct.pack(">H", len(value)) + value.encode()
        body = encode(self.data)
        prelude = struct.pack(">II", 16 + len(head) + len(body), len(head))
        frame = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + body
        return frame + struct.pack(">I", zlib.crc32(frame))


class Converse:
    """`/model/…/converse`."""

    provider = "aws"
    request_id_header = "x-amzn-requestid"
    content_type = "application/json"
    stream_content_type = FRAMES
    streams = False

    def new_request_id(self) -> str:
        """An id as this provider makes them."""
        return token(32)

    def authorize(self, headers: Mapping[str, str]) -> None:
        """The signature is of the whole request, see `sigv4`."""

    def find_model(self, body: Mapping[str, Any], prices: PriceTable) -> Model:
        """The model that the path names."""
        if (model := prices.find(self.provider, body["model"])) is None:
            raise Refusal(400, "The provided model identifier is invalid.")
        return model

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Refuse, or say what the request will use; a cache's tokens come on top."""
        model = self.find_model(body, prices)
        if not isinstance(messages := body.get("messages"), list) or not messages:
            raise Refusal(400, "A conversation must start with a user message.")
        cap = whole_number(body.get("inferenceConfig") or {}, "maxTokens")
        limits = [limit for limit in (cap, model.max_output_tokens) if limit is not None]
        output = min([script.output_tokens, *limits])
        given = script.input_tokens
        if given is None:
            given = text_tokens(messages, body.get("system"), body.get("toolConfig"))
        usage = Usage(
            input=given,
            cached=script.cached_tokens,
            cache_write_5m=script.cache_write_5m_tokens,
            output=output,
        )
        capped = output < script.output_tokens
        return Call(model, script.agent, usage, capped=capped, stream=self.streams)

    def answer(self, call: Call, script: Script) -> str:
        """A `ConverseResponse`."""
        block: dict[str, Any] = {"text": script.content}
        if script.tool_input is not None:
            block = {"toolUse": {"toolUseId": token(22), "name": call.tool, "input": _RAW}}
        answer: dict[str, Any] = {
            "metrics": {"latencyMs": 7},
            "output": {"message": {"content": [block], "role": "assistant"}},
            "stopReason": _stop_reason(call),
        }
        if script.ending != "no-usage":
            answer["usage"] = _usage(call.usage)
        return dumps(answer).replace(f'"{_RAW}"', script.tool_input or "{}")

    def events(self, call: Call, script: Script) -> list[Event]:
        """From `messageStart` to `metadata`."""
        events = [_frame("messageStart", role="assistant")]
        text, kind = script.content, "text"
        if script.tool_input is not None:
            text, kind = script.tool_input, "toolUse"
            start = {"toolUse": {"toolUseId": token(22), "name": call.tool}}
            events.append(_frame("contentBlockStart", contentBlockIndex=0, start=start))
        for piece in pieces(text, script.chunks):
            delta = {"text": piece} if kind == "text" else {"toolUse": {"input": piece}}
            events.append(_frame("contentBlockDelta", contentBlockIndex=0, delta=delta))
        events.append(_frame("contentBlockStop", contentBlockIndex=0))
        events.append(_frame("messageStop", stopReason=_stop_reason(call)))
        if script.ending != "no-usage":
            metrics = {"latencyMs": 7}
            events.append(_frame("metadata", metrics=metrics, usage=_usage(call.usage)))
        return events

    def error(self, refusal: Refusal, request_id: str) -> str:
        """`{"message"}`; its kind stands here too, as some services write it."""
        del request_id
        return dumps({"message": refusal.message, "__type": _TYPES.get(refusal.status, "Error")})

    def error_event(self, request_id: str) -> Event:
        """An exception in the middle of a stream."""
        del request_id
        return Frame(dumps({"message": "Try again."}), "internalServerException", "exception")

    def model(self, name: str) -> dict[str, Any]:
        """One entry of the list of models."""
        return {"modelId": name}

    def models(self, names: list[str]) -> dict[str, Any]:
        """The list of models."""
        return {"modelSummaries": [self.model(name) for name in names]}


class ConverseStream(Converse):
    """`/model/…/converse-stream`."""

    streams = True


class Invoke(Converse):
    """`/model/…/invoke`: each maker's own body and its own answer."""

    def __init__(self) -> None:
        self._anthropic = Anthropic("")

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """As a message, whose version stands in the body, unless the model is not Anthropic's."""
        model = self.find_model(body, prices)
        if (native := _native(model)) is not None:
            call = native.parse(body, model, script, stream=self.streams)
            told = {} if script.ending == "no-usage" else count_headers(call.usage)
            return replace(call, headers=told)
        if body.pop("anthropic_version", None) != "bedrock-2023-05-31":
            raise Refusal(400, "anthropic_version: Field required")
        body = {**body, "stream": self.streams, "metadata": {"user_id": script.agent}}
        return self._anthropic.parse(body, _Only(model), script)

    def answer(self, call: Call, script: Script) -> str:
        """A `message`, or what the model's maker calls so."""
        if (native := _native(call.model)) is not None:
            return dumps(native.answer(call, script))
        return self._anthropic.answer(call, script)

    def events(self, call: Call, script: Script) -> list[Event]:
        """The maker's own events, each in base64; the last has the metrics of the call."""
        if (native := _native(call.model)) is not None:
            parts = native.events(call, script)
        else:
            parts = [json.loads(event.data) for event in self._anthropic.events(call, script)]
        if script.ending != "no-usage":
            counted = {**metrics(call.usage), "invocationLatency": 7, "firstByteLatency": 3}
            parts[-1]["amazon-bedrock-invocationMetrics"] = counted
        return [_chunk(dumps(part)) for part in parts]


class InvokeStream(Invoke):
    """`/model/…/invoke-with-response-stream`."""

    streams = True


class _Only(PriceTable):
    """One model, whatever it is asked for by."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def find(self, provider: str, name: str) -> Model:
        """That one."""
        del provider, name
        return self._model


BEDROCK_PATHS: dict[str, type[Converse]] = {
    "converse": Converse,
    "converse-stream": ConverseStream,
    "invoke": Invoke,
    "invoke-with-response-stream": InvokeStream,
}


def _native(model: Model) -> Native | None:
    return next((native for part, native in NATIVE.items() if part in model.name), None)


def _chunk(data: str) -> Event:
    encoded = base64.b64encode(encode(data)).decode()
    return Frame(dumps({"bytes": encoded, "p": "abcdefg"}), "chunk")


def _frame(kind: str, **fields: Any) -> Event:
    return Frame(dumps(fields | {"p": "abcd"}), kind)


def _stop_reason(call: Call) -> str:
    return "max_tokens" if call.capped else "end_turn"


def _usage(usage: Usage) -> dict[str, Any]:
    cached, written = usage.cached, usage.cache_write_5m
    return {
        "inputTokens": usage.input,
        "outputTokens": usage.output,
        "cacheReadInputTokens": cached,
        "cacheWriteInputTokens": written,
        "totalTokens": usage.input + usage.output + cached + written,
    }
