"""Cohere's chat, as its SDK and its documentation know it."""

import json
from collections.abc import Mapping
from typing import Any

from extauthz.sandbox.prices import PriceTable, Usage
from extauthz.sandbox.script import Script
from extauthz.sandbox.wire import (
    SSE,
    Call,
    Event,
    Refusal,
    dumps,
    flag,
    pieces,
    text_tokens,
    token,
    whole_number,
)

_OWN_PROMPT_TOKENS = 64
"""Counted, but not billed."""


class Cohere:
    """`/v2/chat`."""

    provider = "cohere"
    request_id_header = "x-request-id"
    content_type = "application/json"
    stream_content_type = SSE

    def __init__(self, key: str) -> None:
        self._key = key

    def new_request_id(self) -> str:
        """An id as this provider makes them."""
        return token(32)

    def authorize(self, headers: Mapping[str, str]) -> None:
        """Ask for the key."""
        if headers.get("authorization") != f"Bearer {self._key}":
            raise Refusal(401, "invalid api token")

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Refuse, or say what the request will use."""
        if (model := prices.find(self.provider, str(body.get("model")))) is None:
            raise Refusal(404, "model not found")
        cap = whole_number(body, "max_tokens")
        limits = [limit for limit in (cap, model.max_output_tokens) if limit is not None]
        output = min([script.output_tokens, *limits])
        given = script.input_tokens
        if given is None:
            given = text_tokens(body.get("messages"), body.get("tools"), body.get("documents"))
        return Call(
            model=model,
            agent=script.agent,
            usage=Usage(input=given, output=output),
            capped=output < script.output_tokens,
            stream=flag(body, "stream"),
        )

    def answer(self, call: Call, script: Script) -> str:
        """The whole answer."""
        message: dict[str, Any] = {"role": "assistant"}
        if script.tool_input is None:
            message["content"] = [{"type": "text", "text": script.content}]
        else:
            message["tool_calls"] = [_tool_call(call, script.tool_input)]
        answer = {"id": token(36), "finish_reason": _finish(call), "message": message}
        if script.ending != "no-usage":
            answer["usage"] = _usage(call.usage)
        return dumps(answer)

    def events(self, call: Call, script: Script) -> list[Event]:
        """From `message-start` to `message-end`."""
        end: dict[str, Any] = {"finish_reason": _finish(call)}
        if script.ending != "no-usage":
            end["usage"] = _usage(call.usage)
        start = {"message": {"role": "assistant", "content": [], "tool_calls": []}}
        events = [_event("message-start", id=token(36), delta=start)]
        if script.tool_input is None:
            content = {"message": {"content": {"type": "text", "text": ""}}}
            events.append(_event("content-start", index=0, delta=content))
            for piece in pieces(script.content, script.chunks):
                delta: dict[str, Any] = {"message": {"content": {"text": piece}}}
                events.append(_event("content-delta", index=0, delta=delta))
            events.append(_event("content-end", index=0))
        else:
            begun: dict[str, Any] = {"message": {"tool_calls": _tool_call(call, "")}}
            events.append(_event("tool-call-start", index=0, delta=begun))
            for piece in pieces(script.tool_input, script.chunks):
                more: dict[str, Any] = {"tool_calls": {"function": {"arguments": piece}}}
                events.append(_event("tool-call-delta", index=0, delta={"message": more}))
            events.append(_event("tool-call-end", index=0))
        return [*events, _event("message-end", delta=end)]

    def error(self, refusal: Refusal, request_id: str) -> str:
        """`{"id", "message"}`."""
        return dumps({"id": request_id, "message": refusal.message})

    def error_event(self, request_id: str) -> Event:
        """A stream that breaks off says so where it ends."""
        del request_id
        end = {"finish_reason": "ERROR", "error": "internal error"}
        return _event("message-end", delta=end)

    def model(self, name: str) -> dict[str, Any]:
        """One entry of the list of models."""
        return {"name": name, "endpoints": ["chat"]}

    def models(self, names: list[str]) -> dict[str, Any]:
        """The list of models."""
        return {"models": [self.model(name) for name in names]}


class Embed(Cohere):
    """`/v2/embed`."""

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Billed for its input only."""
        if (model := prices.find(self.provider, str(body.get("model")))) is None:
            raise Refusal(404, "model not found")
        if "input_type" not in body:
            raise Refusal(400, "input_type is required")
        given = script.input_tokens
        if given is None:
            given = text_tokens(body.get("texts"), body.get("inputs"))
        usage = Usage(input=given, output=0)
        return Call(model, script.agent, usage, capped=False, stream=False)

    def answer(self, call: Call, script: Script) -> str:
        """One vector."""
        meta: dict[str, Any] = {"api_version": {"version": "2"}}
        if script.ending != "no-usage":
            meta["billed_units"] = {"input_tokens": call.usage.input}
        embeddings = {"float": [[0.5, 0.25]]}
        texts = [script.content]
        return dumps({"id": token(36), "embeddings": embeddings, "texts": texts, "meta": meta})


def _event(kind: str, **fields: Any) -> Event:
    return Event(json.dumps({"type": kind} | fields), kind)


def _tool_call(call: Call, arguments: str) -> dict[str, Any]:
    function = {"name": call.tool, "arguments": arguments}
    return {"id": token(12), "type": "function", "function": function}


def _finish(call: Call) -> str:
    return "MAX_TOKENS" if call.capped else "COMPLETE"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "billed_units": {"input_tokens": usage.input, "output_tokens": usage.output},
        "tokens": {
            "input_tokens": usage.input + _OWN_PROMPT_TOKENS,
            "output_tokens": usage.output,
        },
    }
