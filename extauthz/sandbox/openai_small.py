"""OpenAI's smaller endpoints: completions, embeddings, images, speech, moderations."""

import base64
import time
from collections.abc import Mapping
from typing import Any

from extauthz.sandbox.openai import OpenAI, chat_usage, no_model
from extauthz.sandbox.prices import Model, PriceTable, Usage
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

_IMAGE_TOKENS = {"low": 272, "medium": 1056, "high": 4160}
_SPEECH = "ID3\x04" + "sound" * 200


class Small(OpenAI):
    """What these have in common: a model, a prompt, and no cap but their own."""

    def find_model(self, body: Mapping[str, Any], prices: PriceTable) -> Model:
        """The model that a request is for."""
        if not isinstance(name := body.get("model"), str):
            raise Refusal(400, "you must provide a model parameter", param="model")
        if (model := prices.find(self.provider, self.model_behind(name))) is None:
            raise no_model(name)
        return model

    def call(self, body: Mapping[str, Any], model: Model, usage: Usage, **more: Any) -> Call:
        """What it will use."""
        user = body.get("user")
        agent = user if isinstance(user, str) else ""
        return Call(model, agent, usage, **{"capped": False, "stream": False, **more})


class Completions(Small):
    """`/v1/completions`."""

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Each prompt is answered `n` times; of `best_of`, all are billed."""
        model, prompt = self.find_model(body, prices), body.get("prompt")
        many = isinstance(prompt, list) and not all(isinstance(one, int) for one in prompt)
        prompts = len(prompt) if many and isinstance(prompt, list) else 1
        answers = max(whole_number(body, "n") or 1, whole_number(body, "best_of") or 1)
        each = min(script.output_tokens, whole_number(body, "max_tokens") or 16)
        usage = Usage(input=text_tokens(prompt), output=each * answers * prompts)
        options = body.get("stream_options")
        return self.call(
            body,
            model,
            usage,
            capped=each < script.output_tokens,
            stream=flag(body, "stream"),
            include_usage=isinstance(options, dict) and flag(options, "include_usage"),
        )

    def answer(self, call: Call, script: Script) -> str:
        """A `text_completion`."""
        return dumps(
            _completion(call) | {"choices": [_choice(script.content)], "usage": _told(call)}
        )

    def events(self, call: Call, script: Script) -> list[Event]:
        """The same in pieces, then the usage if it was asked for, then `[DONE]`."""
        head = _completion(call)
        events = [
            Event(dumps(head | {"choices": [_choice(piece)]}))
            for piece in pieces(script.content, script.chunks)
        ]
        if call.include_usage:
            events.append(Event(dumps(head | {"choices": [], "usage": _told(call)})))
        return [*events, Event("[DONE]")]


class Embeddings(Small):
    """`/v1/embeddings`."""

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Billed for its input only."""
        prompt = script.input_tokens
        if prompt is None:
            prompt = text_tokens(body.get("input"))
        return self.call(body, self.find_model(body, prices), Usage(input=prompt, output=0))

    def answer(self, call: Call, script: Script) -> str:
        """A list of one vector, as the SDK asks for it: floats in base64."""
        del script
        vector = base64.b64encode(b"\0\0\x80?" * 4).decode()
        data = [{"object": "embedding", "index": 0, "embedding": vector}]
        count = call.usage.input
        usage = {"prompt_tokens": count, "total_tokens": count}
        name = call.model.snapshot
        return dumps({"object": "list", "data": data, "model": name, "usage": usage})


class Images(Small):
    """`/v1/images/generations`."""

    event = "image_generation"

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """So many tokens an image, by its quality; each is billed with its prompt."""
        del script
        count = whole_number(body, "n") or 1
        each = _IMAGE_TOKENS.get(str(body.get("quality")), _IMAGE_TOKENS["high"])
        usage = Usage(
            input=text_tokens(body.get("prompt")) * count,
            media=self.picture_tokens(body) * count,
            output=each * count,
        )
        stream = flag(body, "stream")
        return self.call(body, self.find_model(body, prices), usage, stream=stream, choices=count)

    def picture_tokens(self, body: dict[str, Any]) -> int:
        """Of what goes in."""
        del body
        return 0

    def answer(self, call: Call, script: Script) -> str:
        """The images in base64, then the usage."""
        picture = base64.b64encode(script.content.encode()).decode()
        data = [{"b64_json": picture}] * call.choices
        return dumps({"created": int(time.time()), "data": data, "usage": _image_usage(call)})

    def events(self, call: Call, script: Script) -> list[Event]:
        """Partial images, then the whole one with the usage; no `[DONE]`."""
        picture = base64.b64encode(script.content.encode()).decode()
        kind = f"{self.event}.partial_image"
        partial = [
            Event(dumps({"type": kind, "partial_image_index": n, "b64_json": picture}), kind)
            for n in range(2)
        ]
        kind = f"{self.event}.completed"
        whole: dict[str, Any] = {"type": kind, "b64_json": picture}
        if script.ending != "no-usage":
            whole["usage"] = _image_usage(call)
        return [*partial, Event(dumps(whole), kind)]


class Speech(Small):
    """`/v1/audio/speech`."""

    content_type = "audio/mpeg"

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Billed by the character."""
        del script
        text = body.get("input")
        if not isinstance(text, str) or not text:
            raise Refusal(400, "input: field required", param="input")
        return self.call(body, self.find_model(body, prices), Usage(input=len(text), output=0))

    def answer(self, call: Call, script: Script) -> str:
        """Sound, without any usage."""
        del call, script
        return _SPEECH


def moderation() -> str:
    """A moderation, which is free."""
    return dumps({"id": f"modr-{token(12)}", "model": "omni-moderation-latest", "results": []})


def _completion(call: Call) -> dict[str, Any]:
    return {
        "id": f"cmpl-{token(29)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": call.model.snapshot,
    }


def _choice(text: str) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}


def _told(call: Call) -> dict[str, Any]:
    usage = chat_usage(call.usage)
    return {name: value for name, value in usage.items() if isinstance(value, int)}


def _image_usage(call: Call) -> dict[str, Any]:
    said, seen, made = call.usage.input, call.usage.media, call.usage.output
    given = said + seen
    return {
        "input_tokens": given,
        "input_tokens_details": {"text_tokens": said, "image_tokens": seen},
        "output_tokens": made,
        "total_tokens": given + made,
    }
