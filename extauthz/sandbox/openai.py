"""OpenAI's chat completions, as its SDK and its documentation know them."""

import time
from collections.abc import Mapping
from typing import Any

from extauthz.sandbox.prices import Model, PriceTable, Usage
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

_FINGERPRINT = "fp_5a4db0c0de"
_TYPES = {429: "requests"}  # a refused key is an invalid request to OpenAI
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class OpenAI:
    """The dialect of api.openai.com/v1."""

    provider = "openai"
    request_id_header = "x-request-id"
    content_type = "application/json"
    stream_content_type = SSE

    def __init__(self, key: str, deployments: Mapping[str, str] | None = None) -> None:
        """On Azure, calls name one of the `deployments`, and the key has a header of its own."""
        self._key = key
        self._deployments = deployments

    def model_behind(self, name: str) -> str:
        """The model that a request names; on Azure it names a deployment."""
        return name if self._deployments is None else self._deployments.get(name, "")

    def new_request_id(self) -> str:
        """An id as this provider makes them."""
        return f"req_{token(32)}"

    def authorize(self, headers: Mapping[str, str]) -> None:
        """Ask for `authorization: Bearer <key>`, on Azure for `api-key: <key>`."""
        azure = self._deployments is not None
        given = headers.get("api-key" if azure else "authorization")
        if given is None:
            raise Refusal(401, "You didn't provide an API key.")
        if given != (self._key if azure else f"Bearer {self._key}"):
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Refuse, or say what the request will use."""
        if not isinstance(name := body.get("model"), str):
            raise Refusal(400, "you must provide a model parameter", param="model")
        if (model := prices.find(self.provider, self.model_behind(name))) is None:
            raise no_model(name)
        if not isinstance(messages := body.get("messages"), list) or not messages:
            raise Refusal(400, "Missing required parameter: 'messages'.", param="messages")
        stream = flag(body, "stream")
        options = body.get("stream_options")
        if options is not None and not (stream and isinstance(options, dict)):
            text = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise Refusal(400, text, param="stream_options")
        if options is not None and script.always_usage:
            raise Refusal(422, "Extra inputs are not permitted", param="stream_options")
        choices = whole_number(body, "n") or 1
        most = _cap(body, model)
        each = min(script.output_tokens, most)
        prompt = script.input_tokens
        if prompt is None:
            prompt = text_tokens(messages, body.get("tools"))
        cached = min(script.cached_tokens, prompt)  # part of the prompt, at a lower rate
        usage = Usage(
            input=prompt - cached,
            cached=cached,
            output=each * choices,
            reasoning=min(script.reasoning_tokens, each) * choices,
        )
        user = body.get("user")
        return Call(
            model=model,
            agent=user if isinstance(user, str) else "",
            usage=usage,
            capped=each < script.output_tokens,
            stream=stream,
            choices=choices,
            include_usage=script.always_usage
            or (options is not None and flag(options, "include_usage")),
        )

    def answer(self, call: Call, script: Script) -> str:
        """A `chat.completion`."""
        message: dict[str, Any] = {"role": "assistant", "content": script.content}
        if script.tool_input is not None:
            tool_call = _tool_call(call, script.tool_input)
            message = {"role": "assistant", "content": None, "tool_calls": [tool_call]}
        choices = [
            {
                "index": index,
                "message": message | {"refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": _finish_reason(call, script),
            }
            for index in range(call.choices)
        ]
        completion = _head(call, "chat.completion") | {"choices": choices}
        if script.ending != "no-usage":
            completion["usage"] = chat_usage(call.usage)
        completion |= {"service_tier": "default", "system_fingerprint": _FINGERPRINT}
        return dumps(completion)

    def events(self, call: Call, script: Script) -> list[Event]:
        """The `chat.completion.chunk`s, then `[DONE]`."""
        head = _head(call, "chat.completion.chunk")
        head |= {"service_tier": "default", "system_fingerprint": _FINGERPRINT}
        with_usage = call.include_usage and script.ending != "no-usage"

        def chunk(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> Event:
            choice = {"index": index, "delta": delta, "logprobs": None}
            choice["finish_reason"] = finish_reason
            usage = {"usage": None} if with_usage else {}
            return Event(dumps(head | {"choices": [choice]} | usage))

        everyone = range(call.choices)
        if script.tool_input is None:
            opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
            deltas: list[dict[str, Any]] = [
                {"content": piece} for piece in pieces(script.content, script.chunks)
            ]
        else:
            start = {"index": 0} | _tool_call(call, "")
            opening = {"role": "assistant", "content": None, "tool_calls": [start]}
            deltas = [
                {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
                for piece in pieces(script.tool_input, script.chunks)
            ]
        events = [chunk(index, opening) for index in everyone]
        events += [chunk(index, delta) for delta in deltas for index in everyone]
        events += [chunk(index, {}, _finish_reason(call, script)) for index in everyone]
        if with_usage:
            events.append(Event(dumps(head | {"choices": [], "usage": chat_usage(call.usage)})))
        return [*events, Event("[DONE]")]

    def error(self, refusal: Refusal, request_id: str) -> str:
        """`{"error": {...}}`; the request id is in the headers only."""
        del request_id
        fallback = "server_error" if refusal.status >= 500 else "invalid_request_error"
        error = {
            "message": refusal.message,
            "type": _TYPES.get(refusal.status, fallback),
            "param": refusal.param,
            "code": refusal.code or _CODES.get(refusal.status),
        }
        return dumps({"error": error})

    def error_event(self, request_id: str) -> Event:
        """An error in the middle of a stream."""
        text = "The server had an error while processing your request. Sorry about that!"
        return Event(self.error(Refusal(500, text), request_id))

    def model(self, name: str) -> dict[str, Any]:
        """One entry of the list of models."""
        return {"id": name, "object": "model", "created": 1721172741, "owned_by": "system"}

    def models(self, names: list[str]) -> dict[str, Any]:
        """The list of models."""
        return {"object": "list", "data": [self.model(name) for name in names]}


def no_model(name: str) -> Refusal:
    """The provider has no such model."""
    text = f"The model `{name}` does not exist or you do not have access to it."
    return Refusal(404, text, code="model_not_found")


def _cap(body: dict[str, Any], model: Model) -> int:
    """The most output of one choice, from the request and from the model."""
    older = whole_number(body, "max_tokens")
    cap = whole_number(body, "max_completion_tokens")
    if older is not None and model.reasoning:
        text = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead."
        )
        raise Refusal(400, text, param="max_tokens", code="unsupported_parameter")
    if older is not None and cap is not None:
        text = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise Refusal(400, text)
    cap = cap if older is None else older
    most = model.max_output_tokens
    if most is not None and cap is not None and cap > most:
        text = (
            f"max_tokens is too large: {cap}. "
            f"This model supports at most {most} completion tokens, whereas you provided {cap}."
        )
        raise Refusal(400, text, param="max_tokens", code="invalid_value")
    given = [limit for limit in (cap, most) if limit is not None]
    return min(given, default=2**62)


def _head(call: Call, kind: str) -> dict[str, Any]:
    created = int(time.time())
    identifier = f"chatcmpl-{token(29)}"
    return {"id": identifier, "object": kind, "created": created, "model": call.model.snapshot}


def _tool_call(call: Call, arguments: str) -> dict[str, Any]:
    function = {"name": call.tool, "arguments": arguments}
    return {"id": f"call_{token(24)}", "type": "function", "function": function}


def _finish_reason(call: Call, script: Script) -> str:
    if call.capped:
        return "length"
    return "stop" if script.tool_input is None else "tool_calls"


def chat_usage(usage: Usage) -> dict[str, Any]:
    """The `usage` of a chat completion."""
    prompt = usage.input + usage.cached
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output,
        "total_tokens": prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
