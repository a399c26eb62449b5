"""OpenAI's responses, as its SDK and its documentation know them."""

import time
from typing import Any

from extauthz.sandbox.openai import OpenAI, no_model
from extauthz.sandbox.prices import PriceTable, Usage
from extauthz.sandbox.script import Script
from extauthz.sandbox.wire import (
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


class Responses(OpenAI):
    """`/v1/responses`."""

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Refuse, or say what the request will use."""
        if not isinstance(name := body.get("model"), str):
            raise Refusal(400, "Missing required parameter: 'model'.", param="model")
        if (model := prices.find(self.provider, self.model_behind(name))) is None:
            raise no_model(name)
        cap = whole_number(body, "max_output_tokens", least=16)
        limits = [limit for limit in (cap, model.max_output_tokens) if limit is not None]
        output = min([script.output_tokens, *limits])
        prompt = script.input_tokens
        if prompt is None:
            prompt = text_tokens(body.get("input"), body.get("instructions"), body.get("tools"))
        cached = min(script.cached_tokens, prompt)
        user = body.get("user")
        return Call(
            model=model,
            agent=user if isinstance(user, str) else "",
            usage=Usage(
                input=prompt - cached,
                cached=cached,
                output=output,
                reasoning=min(script.reasoning_tokens, output),
            ),
            capped=output < script.output_tokens,
            stream=flag(body, "stream"),
        )

    def answer(self, call: Call, script: Script) -> str:
        """A `response`."""
        return dumps(_response(call, script, f"resp_{token(48)}", _status(call)))

    def events(self, call: Call, script: Script) -> list[Event]:
        """From `response.created` to the event that tells how it ended; no `[DONE]`."""
        identifier, item = f"resp_{token(48)}", f"msg_{token(48)}"
        begun = _response(call, script, identifier, "in_progress")
        place = {"item_id": item, "output_index": 0, "content_index": 0}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": _item(item, [])},
        ]
        events += [
            {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
            for piece in pieces(script.content, script.chunks)
        ]
        status = _status(call)
        ended = _response(call, script, identifier, status)
        events += [
            {"type": "response.output_text.done", **place, "text": script.content, "logprobs": []},
            {"type": f"response.{status}", "response": ended},
        ]
        return [
            Event(dumps(event | {"sequence_number": number}), event["type"])
            for number, event in enumerate(events)
        ]

    def error_event(self, request_id: str) -> Event:
        """An error in the middle of a stream."""
        del request_id
        error = {"type": "error", "code": "server_error", "message": "Sorry.", "param": None}
        return Event(dumps(error | {"sequence_number": 9}), "error")


def _status(call: Call) -> str:
    return "incomplete" if call.capped else "completed"


def _item(identifier: str, content: list[Any]) -> dict[str, Any]:
    return {
        "id": identifier,
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }


def _response(call: Call, script: Script, identifier: str, status: str) -> dict[str, Any]:
    begun = status == "in_progress"
    text = {"type": "output_text", "text": script.content, "annotations": [], "logprobs": []}
    return {
        "id": identifier,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": call.model.snapshot,
        "output": [] if begun else [_item(f"msg_{token(48)}", [text])],
        "parallel_tool_calls": True,
        "service_tier": "auto" if begun else "default",
        "tool_choice": "auto",
        "tools": [],
        # What a client writes there comes back: it must not be taken for the usage.
        "metadata": {"usage": "forged"},
        "usage": None if begun or script.ending == "no-usage" else _usage(call.usage),
    }


def _usage(usage: Usage) -> dict[str, Any]:
    prompt = usage.input + usage.cached
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": prompt + usage.output,
    }
