"""Bodies of Amazon's, Meta's and Mistral's own models at Bedrock, as the documentation has them."""

from collections.abc import Mapping
from typing import Any

from extauthz.sandbox.prices import Model, Usage
from extauthz.sandbox.script import Script
from extauthz.sandbox.wire import Call, Refusal, pieces, text_tokens, whole_number


class Native:
    """A maker's way to ask and to answer; what both have in common.

    What Bedrock counts stands in no body, but in headers and at a stream's end.
    """

    def prompt(self, body: Mapping[str, Any]) -> Any:
        """What is to be answered."""
        raise NotImplementedError

    def cap(self, body: Mapping[str, Any]) -> int | None:
        """The most tokens of the answer."""
        raise NotImplementedError

    def parse(self, body: Mapping[str, Any], model: Model, script: Script, *, stream: bool) -> Call:
        """Refuse, or say what the request will use."""
        if not (prompt := self.prompt(body)):
            raise Refusal(400, "Malformed input request: required key is missing.")
        limits = [one for one in (self.cap(body), model.max_output_tokens) if one is not None]
        output = min([script.output_tokens, *limits])
        given = script.input_tokens
        usage = Usage(
            input=text_tokens(prompt) if given is None else given,
            cached=script.cached_tokens,
            output=output,
        )
        return Call(model, script.agent, usage, capped=output < script.output_tokens, stream=stream)

    def answer(self, call: Call, script: Script) -> dict[str, Any]:
        """The whole answer."""
        raise NotImplementedError

    def events(self, call: Call, script: Script) -> list[dict[str, Any]]:
        """The same in parts."""
        raise NotImplementedError


class Nova(Native):
    """Amazon's Nova: nearly a conversation's shape."""

    def prompt(self, body: Mapping[str, Any]) -> Any:
        """Messages and what belongs to them."""
        return body.get("messages") and [body.get(k) for k in ("messages", "system", "toolConfig")]

    def cap(self, body: Mapping[str, Any]) -> int | None:
        """`inferenceConfig.maxTokens`."""
        return whole_number(body.get("inferenceConfig") or {}, "maxTokens")

    def answer(self, call: Call, script: Script) -> dict[str, Any]:
        """A message, and its tokens."""
        message = {"content": [{"text": script.content}], "role": "assistant"}
        usage = _nova_usage(call.usage)
        return {"output": {"message": message}, "stopReason": "end_turn", "usage": usage}

    def events(self, call: Call, script: Script) -> list[dict[str, Any]]:
        """From `messageStart` to `metadata`."""
        return [
            {"messageStart": {"role": "assistant"}},
            *(
                {"contentBlockDelta": {"delta": {"text": piece}, "contentBlockIndex": 0}}
                for piece in pieces(script.content, script.chunks)
            ),
            {"contentBlockStop": {"contentBlockIndex": 0}},
            {"messageStop": {"stopReason": "end_turn"}},
            {"metadata": {"usage": _nova_usage(call.usage), "metrics": {}, "trace": {}}},
        ]


class Llama(Native):
    """Meta's Llama."""

    def prompt(self, body: Mapping[str, Any]) -> Any:
        """`prompt`."""
        return body.get("prompt")

    def cap(self, body: Mapping[str, Any]) -> int | None:
        """`max_gen_len`, 512 where it is left out."""
        return whole_number(body, "max_gen_len") or 512

    def answer(self, call: Call, script: Script) -> dict[str, Any]:
        """`generation`."""
        return {
            "generation": script.content,
            "prompt_token_count": call.usage.input,
            "generation_token_count": call.usage.output,
            "stop_reason": "length" if call.capped else "stop",
        }

    def events(self, call: Call, script: Script) -> list[dict[str, Any]]:
        """A `generation` for each part; the prompt's count stands in the first."""
        parts = pieces(script.content, script.chunks)
        return [
            {
                "generation": piece,
                "prompt_token_count": None if at else call.usage.input,
                "generation_token_count": at + 1,
                "stop_reason": None if at + 1 < len(parts) else "stop",
            }
            for at, piece in enumerate(parts)
        ]


class Mistral(Native):
    """Mistral's, which takes a prompt or messages."""

    def prompt(self, body: Mapping[str, Any]) -> Any:
        """`prompt`, or `messages`."""
        return body.get("prompt") or [body.get("messages"), body.get("tools")]

    def cap(self, body: Mapping[str, Any]) -> int | None:
        """`max_tokens`, 8192 where it is left out."""
        return whole_number(body, "max_tokens") or 8192

    def answer(self, call: Call, script: Script) -> dict[str, Any]:
        """`outputs`."""
        reason = "length" if call.capped else "stop"
        return {"outputs": [{"text": script.content, "stop_reason": reason}]}

    def events(self, call: Call, script: Script) -> list[dict[str, Any]]:
        """The same in pieces."""
        del call
        return [
            {"outputs": [{"text": piece, "stop_reason": None}]}
            for piece in pieces(script.content, script.chunks)
        ]


class Titan(Native):
    """Amazon's Titan, as it writes."""

    def prompt(self, body: Mapping[str, Any]) -> Any:
        """`inputText`."""
        return body.get("inputText")

    def cap(self, body: Mapping[str, Any]) -> int | None:
        """`textGenerationConfig.maxTokenCount`."""
        return whole_number(body.get("textGenerationConfig") or {}, "maxTokenCount")

    def answer(self, call: Call, script: Script) -> dict[str, Any]:
        """`results`."""
        result = {
            "tokenCount": call.usage.output,
            "outputText": script.content,
            "completionReason": "FINISH",
        }
        return {"inputTextTokenCount": call.usage.input, "results": [result]}

    def events(self, call: Call, script: Script) -> list[dict[str, Any]]:
        """An `outputText` for each part."""
        return [
            {"outputText": piece, "index": 0, "inputTextTokenCount": call.usage.input}
            for piece in pieces(script.content, script.chunks)
        ]


class TitanEmbedding(Titan):
    """Amazon's Titan, as it embeds."""

    def parse(self, body: Mapping[str, Any], model: Model, script: Script, *, stream: bool) -> Call:
        """As all, but that there is no output."""
        call = super().parse(body, model, script, stream=stream)
        usage = Usage(input=call.usage.input, output=0)
        return Call(model, script.agent, usage, capped=False, stream=stream)

    def answer(self, call: Call, script: Script) -> dict[str, Any]:
        """`embedding`."""
        del script
        return {"embedding": [0.1, -0.2], "inputTextTokenCount": call.usage.input}


NATIVE: dict[str, Native] = {
    "amazon.nova": Nova(),
    "meta.llama": Llama(),
    "mistral.mistral": Mistral(),
    "amazon.titan-text": Titan(),
    "amazon.titan-embed": TitanEmbedding(),
}
"""By what the model's name has in it."""


def metrics(usage: Usage) -> dict[str, int]:
    """What Bedrock has counted, as the end of a stream tells it."""
    counts = {"inputTokenCount": usage.input, "outputTokenCount": usage.output}
    if usage.cached or usage.cache_write_5m:
        counts["cacheReadInputTokenCount"] = usage.cached
        counts["cacheWriteInputTokenCount"] = usage.cache_write_5m
    return counts


def count_headers(usage: Usage) -> dict[str, str]:
    """The same, as the headers of an answer tell it."""
    names = {
        "inputTokenCount": "input-token-count",
        "outputTokenCount": "output-token-count",
        "cacheReadInputTokenCount": "cache-read-input-token-count",
        "cacheWriteInputTokenCount": "cache-write-input-token-count",
    }
    counts = metrics(usage).items()
    return {f"X-Amzn-Bedrock-{names[name].title()}": str(count) for name, count in counts}


def _nova_usage(usage: Usage) -> dict[str, int]:
    return {
        "inputTokens": usage.input,
        "outputTokens": usage.output,
        "totalTokens": usage.input + usage.output,
        "cacheReadInputTokenCount": usage.cached,
        "cacheWriteInputTokenCount": usage.cache_write_5m,
    }
