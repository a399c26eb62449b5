"""Google's Gemini API, as its SDK and its documentation know it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extauthz.sandbox.prices import Model, PriceTable, Usage
from extauthz.sandbox.script import Script
from extauthz.sandbox.wire import (
    SSE,
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

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
_RAW = "raw-arguments-of-the-sandbox"


@dataclass(frozen=True)
class Item(Event):
    """One object of the JSON list that a stream is without `alt=sse`."""

    before: str = ","
    after: str = ""

    def encode(self, newline: str) -> bytes:
        """The object with what stands around it."""
        del newline
        return encode(f"{self.before}{self.data}{self.after}")


class Gemini:
    """`:generateContent` of generativelanguage.googleapis.com."""

    provider = "google"
    request_id_header = "x-request-id"
    content_type = "application/json; charset=UTF-8"
    stream_content_type = SSE
    streams = False

    def __init__(self, key: str) -> None:
        self._key = key

    def new_request_id(self) -> str:
        """An id as this provider makes them."""
        return token(22)

    def authorize(self, headers: Mapping[str, str]) -> None:
        """Ask for the key; Vertex AI asks for a bearer token."""
        given = headers.get("x-goog-api-key") or headers.get("authorization", "")
        if given.removeprefix("Bearer ") != self._key:
            raise Refusal(400, "API key not valid. Please pass a valid API key.")

    def find_model(self, body: Mapping[str, Any], prices: PriceTable) -> Model:
        """The model that the path names."""
        name = body["model"]
        if (model := prices.find(self.provider, name)) is None:
            raise Refusal(404, f"models/{name} is not found for API version v1beta")
        return model

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Refuse, or say what the request will use; thoughts come out of the cap."""
        model = self.find_model(body, prices)
        if not isinstance(contents := body.get("contents"), list) or not contents:
            raise Refusal(400, "* GenerateContentRequest.contents: contents is not specified")
        config = body.get("generationConfig") or body.get("generation_config") or {}
        cap = whole_number(config, "maxOutputTokens")
        candidates = whole_number(config, "candidateCount") or 1
        limits = [limit for limit in (cap, model.max_output_tokens) if limit is not None]
        output = min([script.output_tokens, *limits])
        prompt = script.input_tokens
        if prompt is None:
            prompt = text_tokens(contents, body.get("systemInstruction"), body.get("tools"))
        cached = min(script.cached_tokens, prompt)
        return Call(
            model=model,
            agent=script.agent,
            usage=Usage(
                input=prompt - cached,
                cached=cached,
                output=output * candidates,
                reasoning=min(script.reasoning_tokens, output),
            ),
            capped=output < script.output_tokens,
            stream=self.streams,
            choices=candidates,
        )

    def answer(self, call: Call, script: Script) -> str:
        """A `GenerateContentResponse`."""
        answer = _response(call, _parts(script, script.content), _finish(call))
        if script.ending != "no-usage":
            answer["usageMetadata"] = _usage(call.usage)
        return _with_arguments(answer, script)

    def events(self, call: Call, script: Script) -> list[Event]:
        """The same in pieces, each with the usage so far."""
        texts = pieces(script.content, script.chunks)
        events = []
        for number, text in enumerate(texts, 1):
            last = number == len(texts)
            event = _response(call, _parts(script, text), _finish(call) if last else None)
            if script.ending != "no-usage":
                event["usageMetadata"] = _usage(call.usage, number / len(texts))
            events.append(_with_arguments(event, script))
        return self.arrange(events)

    def arrange(self, events: list[str]) -> list[Event]:
        """Server-sent events, without a name and without an end of their own."""
        return [Event(event) for event in events]

    def error(self, refusal: Refusal, request_id: str) -> str:
        """`{"error": {code, message, status}}`."""
        del request_id
        status = _STATUS.get(refusal.status, "UNKNOWN")
        error = {"code": refusal.status, "message": refusal.message, "status": status}
        return dumps({"error": error})

    def error_event(self, request_id: str) -> Event:
        """An error in the middle of a stream."""
        return Event(self.error(Refusal(503, "The model is overloaded."), request_id))

    def model(self, name: str) -> dict[str, Any]:
        """One entry of the list of models."""
        return {"name": f"models/{name}", "version": "1", "displayName": name}

    def models(self, names: list[str]) -> dict[str, Any]:
        """The list of models, on one page."""
        return {"models": [self.model(name) for name in names]}


class GeminiEvents(Gemini):
    """`:streamGenerateContent?alt=sse`."""

    streams = True


class GeminiList(Gemini):
    """`:streamGenerateContent`: one JSON list, object by object."""

    streams = True
    stream_content_type = "application/json; charset=UTF-8"

    def arrange(self, events: list[str]) -> list[Event]:
        """The first opens the list, the last closes it."""
        last = len(events) - 1
        return [
            Item(event, None, "," if at else "[", "" if at < last else "]")
            for at, event in enumerate(events)
        ]

    def error_event(self, request_id: str) -> Event:
        """An error is the list's last object."""
        return Item(super().error_event(request_id).data, None, ",", "]")


class GeminiEmbedding(Gemini):
    """`:embedContent`."""

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Billed for its input only."""
        given = script.input_tokens
        if given is None:
            given = text_tokens(body.get("content"), body.get("requests"))
        usage = Usage(input=given, output=0)
        count = len(body.get("requests") or [None])
        return Call(
            self.find_model(body, prices), script.agent, usage, capped=False, stream=False,
            choices=count,
        )  # fmt: skip

    def answer(self, call: Call, script: Script) -> str:
        """One vector."""
        return dumps({"embedding": {"values": [0.5, 0.25]}} | _embedding_usage(call, script))


class GeminiEmbeddings(GeminiEmbedding):
    """`:batchEmbedContents`."""

    def answer(self, call: Call, script: Script) -> str:
        """One vector for each request."""
        vectors = [{"values": [0.5, 0.25]}] * call.choices
        return dumps({"embeddings": vectors} | _embedding_usage(call, script))


class GeminiPrediction(GeminiEmbedding):
    """`:predict`, at Vertex AI."""

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """One vector for each instance."""
        if not isinstance(instances := body.get("instances"), list) or not instances:
            raise Refusal(400, "instances: required")
        return super().parse({**body, "requests": instances}, prices, script)

    def answer(self, call: Call, script: Script) -> str:
        """Its tokens stand beside it."""
        statistics = {"truncated": False, "token_count": call.usage.input}
        if script.ending == "no-usage":
            statistics = {}
        embeddings = {"values": [0.5, 0.25], "statistics": statistics}
        metadata = {"billableCharacterCount": 5}
        return dumps({"predictions": [{"embeddings": embeddings}], "metadata": metadata})


class GeminiCount(Gemini):
    """`:countTokens`, which is free."""

    def parse(self, body: dict[str, Any], prices: PriceTable, script: Script) -> Call:
        """Nothing is used."""
        model = self.find_model(body, prices)
        return Call(model, script.agent, Usage(0, 0), capped=False, stream=False)

    def answer(self, call: Call, script: Script) -> str:
        """How many tokens there are."""
        del call, script
        return dumps({"totalTokens": 7})


def gemini_actions(key: str) -> dict[str, Gemini]:
    """What stands behind the colon of a path, but for the stream: its query decides."""
    return {
        "generateContent": Gemini(key),
        "embedContent": GeminiEmbedding(key),
        "batchEmbedContents": GeminiEmbeddings(key),
        "predict": GeminiPrediction(key),
        "countTokens": GeminiCount(key),
    }


def _response(call: Call, parts: list[Any], finish: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    candidates = [candidate | {"index": index} for index in range(call.choices)]
    return {
        "candidates": candidates,
        "modelVersion": call.model.snapshot,
        "responseId": token(22),
    }


def _parts(script: Script, text: str) -> list[Any]:
    if script.tool_input is None:
        return [{"text": text}]
    return [{"functionCall": {"name": "sandbox_tool", "args": _RAW}}]


def _with_arguments(answer: dict[str, Any], script: Script) -> str:
    """The arguments' own bytes reach the client."""
    return dumps(answer).replace(f'"{_RAW}"', script.tool_input or "{}")


def _finish(call: Call) -> str:
    return "MAX_TOKENS" if call.capped else "STOP"


def _usage(usage: Usage, share: float = 1) -> dict[str, Any]:
    prompt = usage.input + usage.cached
    made = round((usage.output - usage.reasoning) * share)
    told: dict[str, Any] = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": made,
        "totalTokenCount": prompt + made + usage.reasoning,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
    }
    if usage.reasoning:
        told["thoughtsTokenCount"] = usage.reasoning
    if usage.cached:
        told["cachedContentTokenCount"] = usage.cached
        told["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": usage.cached}]
    return told


def _embedding_usage(call: Call, script: Script) -> dict[str, Any]:
    if script.ending == "no-usage":
        return {}
    return {"usageMetadata": {"promptTokenCount": call.usage.input}}
