"""Anthropic's messages, as its SDK and its documentation know them."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
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

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}

# Stands for the raw tool input while the rest is encoded; nobody can guess it, so none can forge.
_RAW = f"raw-{secrets.token_hex(16)}"


class Anthropic:
    """The dialect of api.anthropic.com/v1."""

    provider = "anthropic"
    request_id_header = "request-id"
    content_type = "application/json"
    stream_content_type = SSE

    def __init__(self, key: str) -> None:
        self._key = key

    def new_request_id(self) -> str:
        """An id as this provider makes them."""
        return f"req_{token(24)}"

    def authorize(self, headers: Mapping[str, str]) -> None:
        """Ask for the key and for `anthropic-version`.

        The key comes as `x-api-key`, which goes first, or as a bearer token: that is how the SDK
        sends its `api_key` since version 2.
        """
        given = headers.get("x-api-key")
        if given is None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                raise Refusal(401, "x-api-key header is required")
        if given != self._key:
            raise Refusal(401, "invalid x-api-key")
        if "anthropic-version" not in headers:
            raise Refusal(400, "anthropic-version: header is required")

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Refuse, or say what the request will use."""
        if not isinstance(name := body.get("model"), str):
            raise Refusal(400, "model: Field required")
        if (cap := whole_number(body, "max_tokens")) is None:
            raise Refusal(400, "max_tokens: Field required")
        if not isinstance(messages := body.get("messages"), list) or not messages:
            raise Refusal(400, "messages: at least one message is required")
        if (model := prices.find(self.provider, name)) is None:
            raise Refusal(404, f"model: {name}")
        most = model.max_output_tokens
        if most is not None and cap > most:
            text = (
                f"max_tokens: {cap} > {most}, which is the maximum allowed number of output "
                f"tokens for {model.snapshot}"
            )
            raise Refusal(400, text)
        given = script.input_tokens
        if given is None:
            given = text_tokens(messages, body.get("system"), body.get("tools"))
        output = min(script.output_tokens, cap)
        usage = Usage(
            input=given,  # the cache's tokens come on top
            cached=script.cached_tokens,
            cache_write_5m=script.cache_write_5m_tokens,
            cache_write_1h=script.cache_write_1h_tokens,
            output=output,
            reasoning=min(script.reasoning_tokens, output),
            searches=_uses(body, "web_search_", script.web_searches),
            fetches=_uses(body, "web_fetch_", script.web_fetches),
        )
        metadata = body.get("metadata")
        user = metadata.get("user_id") if isinstance(metadata, dict) else None
        return Call(
            model=model,
            agent=user if isinstance(user, str) else "",
            usage=usage,
            capped=output < script.output_tokens,
            stream=flag(body, "stream"),
        )

    def answer(self, call: Call, script: Script) -> str:
        """A `message`."""
        content = [*_tool_blocks(call.usage), _block(call, script, script.content, _RAW)]
        message = _message(call, content, _stop_reason(call, script))
        if script.ending != "no-usage":
            message["usage"] = _usage(call.usage, call.usage.output)
        # Replaced after encoding, so that the input's own bytes reach the client.
        return dumps(message).replace(f'"{_RAW}"', script.tool_input or "")

    def events(self, call: Call, script: Script) -> list[Event]:
        """From `message_start` to `message_stop`."""
        message = _message(call, [], None)
        closing: dict[str, Any] = {
            "delta": {"stop_reason": _stop_reason(call, script), "stop_sequence": None}
        }
        if script.ending != "no-usage":
            message["usage"] = _usage(replace(call.usage, searches=0, fetches=0), 1)
            usage: dict[str, Any] = {"output_tokens": call.usage.output, **_uses_told(call.usage)}
            if script.delta_usage == "full":
                usage = _usage(call.usage, call.usage.output)
                del usage["service_tier"], usage["cache_creation"]
            closing["usage"] = usage
        if script.tool_input is None:
            deltas = [
                {"type": "text_delta", "text": piece}
                for piece in pieces(script.content, script.chunks)
            ]
        else:
            deltas = [
                {"type": "input_json_delta", "partial_json": piece}
                for piece in pieces(script.tool_input, script.chunks)
            ]
        tool_blocks = _tool_blocks(call.usage)
        at = len(tool_blocks)
        return [
            _event("message_start", message=message),
            *(
                _event(f"content_block_{edge}", index=index, **started)
                for index, block in enumerate(tool_blocks)
                for edge, started in (("start", {"content_block": block}), ("stop", {}))
            ),
            _event("content_block_start", index=at, content_block=_block(call, script, "", {})),
            _event("ping"),
            *(_event("content_block_delta", index=at, delta=delta) for delta in deltas),
            _event("content_block_stop", index=at),
            _event("message_delta", **closing),
            _event("message_stop"),
        ]

    def error(self, refusal: Refusal, request_id: str) -> str:
        """`{"type": "error", "error": {...}}`."""
        fallback = "api_error" if refusal.status >= 500 else "invalid_request_error"
        error = {"type": _TYPES.get(refusal.status, fallback), "message": refusal.message}
        return dumps({"type": "error", "error": error, "request_id": request_id})

    def error_event(self, request_id: str) -> Event:
        """An error in the middle of a stream."""
        return Event(self.error(Refusal(529, "Overloaded"), request_id), "error")

    def model(self, name: str) -> dict[str, Any]:
        """One entry of the list of models."""
        return {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": "2025-09-29T00:00:00Z",
            "lifecycle": "active",
        }

    def models(self, names: list[str]) -> dict[str, Any]:
        """The list of models, on one page."""
        data = [self.model(name) for name in names]
        return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def _event(kind: str, **fields: Any) -> Event:
    return Event(dumps({"type": kind} | fields), kind)


def _message(call: Call, content: list[Any], stop_reason: str | None) -> dict[str, Any]:
    return {
        "model": call.model.snapshot,
        "id": f"msg_{token(24)}",
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
    }


def _block(call: Call, script: Script, text: str, tool_input: Any) -> dict[str, Any]:
    if script.tool_input is None:
        return {"type": "text", "text": text}
    return {
        "type": "tool_use",
        "id": f"toolu_{token(24)}",
        "name": call.tool,
        "input": tool_input,
    }


def _stop_reason(call: Call, script: Script) -> str:
    if call.capped:
        return "max_tokens"
    return "end_turn" if script.tool_input is None else "tool_use"


def _usage(usage: Usage, output: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_read_input_tokens": usage.cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
        "output_tokens": output,
        "service_tier": "standard",
        **_uses_told(usage),
    }


def _uses(body: Mapping[str, Any], kind: str, wanted: int) -> int:
    """How often tools of a kind, which run at Anthropic, are used."""
    tools = [tool for tool in body.get("tools") or [] if isinstance(tool, dict)]
    allowed = [
        whole_number(tool, "max_uses") for tool in tools if str(tool.get("type")).startswith(kind)
    ]
    return min(wanted, sum(wanted if most is None else most for most in allowed))


def _uses_told(usage: Usage) -> dict[str, Any]:
    if not usage.searches and not usage.fetches:
        return {}
    counts = {"web_search_requests": usage.searches, "web_fetch_requests": usage.fetches}
    return {"server_tool_use": counts}


def _tool_blocks(usage: Usage) -> list[dict[str, Any]]:
    """What an answer shows of each search and each fetch."""
    blocks: list[dict[str, Any]] = []
    for name in ["web_search"] * usage.searches + ["web_fetch"] * usage.fetches:
        use = f"srvtoolu_{token(24)}"
        asked = {"query": "hello"} if name == "web_search" else {"url": "https://example.com"}
        error = {"type": f"{name}_tool_result_error", "error_code": "unavailable"}
        blocks += [
            {"type": "server_tool_use", "id": use, "name": name, "input": asked},
            {"type": f"{name}_tool_result", "tool_use_id": use, "content": error},
        ]
    return blocks
