"""The sandbox's HTTP server: both providers' routes, and its own under `/_sandbox`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web

from extauthz.sandbox.anthropic import Anthropic
from extauthz.sandbox.bedrock import BEDROCK_PATHS, Converse
from extauthz.sandbox.bill import Bill, Received
from extauthz.sandbox.cohere import Cohere, Embed
from extauthz.sandbox.delivery import arrange, deliver
from extauthz.sandbox.gemini import Gemini, GeminiEvents, GeminiList, gemini_actions
from extauthz.sandbox.openai import OpenAI
from extauthz.sandbox.openai_small import Completions, Embeddings, Images, Speech, moderation
from extauthz.sandbox.openai_uploads import (
    ImageEdits,
    Transcriptions,
    Translations,
    parse_form,
)
from extauthz.sandbox.prices import Model, PriceTable, Rates
from extauthz.sandbox.responses import Responses
from extauthz.sandbox.script import Script, ScriptError
from extauthz.sandbox.sigv4 import verify
from extauthz.sandbox.vertex import RawPredict, RegionalRawPredict
from extauthz.sandbox.wire import Call, Refusal, Wire, dumps, encode, parse_object

DEFAULT_OPENAI_KEY = "sandbox-openai-key"
DEFAULT_ANTHROPIC_KEY = "sandbox-anthropic-key"
DEFAULT_GOOGLE_KEY = "sandbox-google-key"
CLIENT_MAX_SIZE = 64 * 2**20

_PUBLISHERS = "v1{beta:(beta1)?}/projects/{project}/locations/{location}/publishers"
GEMINI_MODELS = ("v1/models", "v1beta/models", f"{_PUBLISHERS}/google/models")
CLAUDE_MODELS: dict[str, type[RawPredict]] = {
    f"/{_PUBLISHERS.replace('{location}', 'global')}/anthropic/models": RawPredict,
    f"/{_PUBLISHERS}/anthropic/models": RegionalRawPredict,
}

OPENAI_PATHS: dict[str, type[OpenAI]] = {
    "/chat/completions": OpenAI,
    "/responses": Responses,
    "/completions": Completions,
    "/embeddings": Embeddings,
    "/images/generations": Images,
    "/audio/speech": Speech,
    "/audio/transcriptions": Transcriptions,
    "/audio/translations": Translations,
    "/images/edits": ImageEdits,
}
"""What OpenAI serves under `/v1`, and Azure under a deployment."""

DEPLOYMENTS = {"my-gpt": "gpt-4o-mini", "my-embeddings": "text-embedding-3-small"}
"""On Azure."""


def create_app(
    *,
    openai_key: str = DEFAULT_OPENAI_KEY,
    anthropic_key: str = DEFAULT_ANTHROPIC_KEY,
    google_key: str = DEFAULT_GOOGLE_KEY,
    log_headers: Iterable[str] = ("x-*",),
) -> web.Application:
    """The whole sandbox.

    Run it with `runner_options`: it relies on aiohttp cancelling the handler of a client that
    left, and on request bodies that nobody has decompressed.

    Args:
        openai_key: The credential that OpenAI's routes accept.
        anthropic_key: The credential that Anthropic's routes accept.
        google_key: The credential that Gemini's routes accept.
        log_headers: Patterns of the request headers whose values are recorded; those that can
            carry a credential never are.
    """
    app = web.Application(client_max_size=CLIENT_MAX_SIZE)
    providers = _Providers(
        OpenAI(openai_key), Anthropic(anthropic_key), Gemini(google_key), Bill(log_headers)
    )
    control = _Control(providers)
    app.add_routes(
        [
            *(
                web.post(f"/v1{path}", providers.serve(wire(openai_key)))
                for path, wire in OPENAI_PATHS.items()
            ),
            *(
                web.post(f"{prefix}{path}", providers.serve(wire(openai_key, DEPLOYMENTS)))
                for path, wire in OPENAI_PATHS.items()
                for prefix in ("/openai/deployments/{deployment}", "/openai/v1")
            ),
            *(
                web.post(f"/{models}/{{model}}:{action}", providers.serve(wire))
                for action, wire in gemini_actions(google_key).items()
                for models in GEMINI_MODELS
            ),
            *(
                web.post(
                    f"/{models}/{{model}}:streamGenerateContent",
                    providers.serve_gemini_stream(GeminiEvents(google_key), GeminiList(google_key)),
                )
                for models in GEMINI_MODELS
            ),
            web.get("/v1beta/models", providers.models),
            *(
                web.post(f"{models}/{{model}}:{action}", providers.serve(wire(google_key)))
                for models, wire in CLAUDE_MODELS.items()
                for action in ("rawPredict", "streamRawPredict")
            ),
            web.post("/v2/chat", providers.serve(Cohere(openai_key))),
            web.post("/v2/embed", providers.serve(Embed(openai_key))),
            *(
                web.post(f"/model/{{model}}/{action}", providers.serve(wire()))
                for action, wire in BEDROCK_PATHS.items()
            ),
            web.post("/v1/moderations", providers.moderations),
            web.post("/v1/images/variations", providers.variations),
            web.post("/v1/messages", providers.messages),
            web.post("/v1/messages/count_tokens", providers.count_tokens),
            web.get("/v1/models", providers.models),
            web.get("/v1/models/{id}", providers.models),
            web.get("/_sandbox/bill", control.bill),
            web.delete("/_sandbox/bill", control.reset_bill),
            web.get("/_sandbox/requests", control.requests),
            web.post("/_sandbox/script", control.script),
            web.delete("/_sandbox/script", control.reset_script),
            web.post("/_sandbox/prices", control.price),
            web.route("*", "/{path:.*}", providers.unknown),
        ]
    )
    return app


runner_options: dict[str, Any] = {
    "access_log": None,
    "handler_cancellation": True,
    "auto_decompress": False,
    "max_field_size": 65536,  # room for a scripted tool input
    "shutdown_timeout": 0.2,  # a stalled answer never ends by itself
}


class _Providers:
    """The routes that SDKs call."""

    def __init__(self, openai: OpenAI, anthropic: Anthropic, gemini: Gemini, bill: Bill) -> None:
        self.openai = openai
        self.anthropic = anthropic
        self.gemini = gemini
        self.received = bill
        self.prices = PriceTable()
        self.script = Script()

    def serve(self, wire: Wire) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request) -> web.StreamResponse:
            return await self._complete(wire, request)

        return handler

    def serve_gemini_stream(
        self, events: Wire, items: Wire
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request) -> web.StreamResponse:
            wire = events if request.query.get("alt") == "sse" else items
            return await self._complete(wire, request)

        return handler

    async def moderations(self, request: web.Request) -> web.StreamResponse:
        return await self._uncounted(request, moderation())

    async def variations(self, request: web.Request) -> web.StreamResponse:
        return await self._uncounted(request, dumps({"created": 1, "data": [{"b64_json": "eA=="}]}))

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        return await self._uncounted(request, dumps({"input_tokens": 7}), self.anthropic)

    async def _uncounted(
        self, request: web.Request, text: str, wire: Wire | None = None
    ) -> web.StreamResponse:
        """An answer that stands on no bill: it is free, or priced by the call elsewhere."""
        wire = wire or self.openai
        received = self._receive(wire, request, await request.read())
        request_id = wire.new_request_id()
        try:
            wire.authorize(request.headers)
        except Refusal as refusal:
            return _refuse(wire, received, refusal, request_id)
        received.status = 200
        return web.json_response(text=text)

    async def messages(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(self.anthropic, request)

    async def models(self, request: web.Request) -> web.StreamResponse:
        wire = self._guess(request)
        received = self._receive(wire, request, b"")
        request_id = wire.new_request_id()
        try:
            wire.authorize(request.headers)
            text = self._describe(wire, request.match_info.get("id"))
        except Refusal as refusal:
            return _refuse(wire, received, refusal, request_id)
        received.status = 200
        return web.json_response(text=text, headers={wire.request_id_header: request_id})

    async def unknown(self, request: web.Request) -> web.StreamResponse:
        wire = self._guess(request)
        received = self._receive(wire, request, await request.read())
        refusal = Refusal(404, f"Invalid URL ({request.method} {request.path})")
        return _refuse(wire, received, refusal, wire.new_request_id())

    async def _complete(self, wire: Wire, request: web.Request) -> web.StreamResponse:
        request_id = wire.new_request_id()
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            received = self._receive(wire, request, b"")
            return _refuse(wire, received, Refusal(413, "Request is too large"), request_id)
        received = self._receive(wire, request, body)
        try:
            call, script = self._accept(wire, request, body)
        except Refusal as refusal:
            return _refuse(wire, received, refusal, request_id)
        received.status = script.status
        line = None
        if script.status == 200 or script.billed_error:
            # From here on the provider works for its money, whoever hangs up.
            line = self.received.charge(received, call, request_id)
        if script.latency_ms:
            await asyncio.sleep(script.latency_ms / 1000)
        stream = call.stream and script.status == 200
        kind = (
            (call.content_type or wire.content_type) if script.status == 200 else "application/json"
        )
        kind = wire.stream_content_type if stream else kind
        headers = {"content-type": kind, wire.request_id_header: request_id}
        if script.status == 200 and not stream:
            headers |= call.headers
        response = web.StreamResponse(status=script.status, headers=headers)
        parts = _parts(wire, call, script, request_id)
        await deliver(request, response, parts, script, stream=stream)
        if line is not None:
            line.completed = True
        return response

    def _accept(self, wire: Wire, request: web.Request, body: bytes) -> tuple[Call, Script]:
        wire.authorize(request.headers)
        if isinstance(wire, Converse):
            verify(request.method, request.rel_url.raw_path_qs, request.headers, body)
        try:
            script = self.script.with_headers(request.headers.items())
        except ScriptError as error:
            raise Refusal(400, str(error), code="sandbox_script") from None
        if isinstance(wire, Transcriptions | ImageEdits):
            document = parse_form(body, request.headers.get("content-type", ""))
        else:
            document = parse_object(body)
        named = request.match_info.get("deployment") or request.match_info.get("model")
        if named is not None:
            document["model"] = named
        return wire.parse(document, self.prices, script), script

    def _describe(self, wire: Wire, name: str | None) -> str:
        if name is None:
            return dumps(wire.models(self.prices.ids(wire.provider)))
        if self.prices.find(wire.provider, name) is None:
            raise Refusal(404, f"The model '{name}' does not exist", code="model_not_found")
        return dumps(wire.model(name))

    def _receive(self, wire: Wire, request: web.Request, body: bytes) -> Received:
        return self.received.receive(
            wire.provider, request.method, request.rel_url.raw_path, request.headers.items(), body
        )

    def _guess(self, request: web.Request) -> Wire:
        """Whose client asks, where the path does not say."""
        names = request.headers
        if "x-goog-api-key" in names:
            return self.gemini
        anthropic = "anthropic-version" in names or "x-api-key" in names
        return self.anthropic if anthropic else self.openai


class _Control:
    """The routes that tests call: what to do, and what was done."""

    def __init__(self, providers: _Providers) -> None:
        self._providers = providers

    async def bill(self, request: web.Request) -> web.Response:
        after = int(request.query.get("after", "0"))
        return web.json_response(self._providers.received.to_json(after))

    async def reset_bill(self, _request: web.Request) -> web.Response:
        self._providers.received.reset()
        return web.json_response({})

    async def requests(self, _request: web.Request) -> web.Response:
        records = self._providers.received.requests
        return web.json_response({"requests": [record.to_json() for record in records]})

    async def script(self, request: web.Request) -> web.Response:
        try:
            settings = parse_object(await request.read())
            self._providers.script = self._providers.script.with_settings(settings)
        except (Refusal, ScriptError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({})

    async def reset_script(self, _request: web.Request) -> web.Response:
        self._providers.script = Script()
        return web.json_response({})

    async def price(self, request: web.Request) -> web.Response:
        try:
            model = _read_model(parse_object(await request.read()))
        except (Refusal, ValueError, TypeError, KeyError) as error:
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)
        self._providers.prices.add(model)
        return web.json_response({})


_SELLERS = frozenset(("anthropic", "aws", "cohere", "google", "openai"))


def _read_model(body: dict[str, Any]) -> Model:
    """A model and its price, in USD per million tokens, as strings: a JSON number is a float."""
    provider, name = str(body.pop("provider")), str(body.pop("model"))
    if provider not in _SELLERS:
        raise ValueError(f"{provider}: the sandbox plays {', '.join(sorted(_SELLERS))}")
    snapshot = str(body.pop("snapshot", name))
    most = body.pop("max_output_tokens", None)
    reasoning = bool(body.pop("reasoning", False))
    if not all(isinstance(rate, str) for rate in body.values()):
        raise TypeError('a rate is a string, for example "0.15"')
    rates = Rates.per_million(**body)
    maximum = None if most is None else int(most)
    return Model(provider, name, snapshot, rates, maximum, reasoning=reasoning)


def _parts(wire: Wire, call: Call, script: Script, request_id: str) -> list[bytes]:
    """The body of the response: one part, or one for each event of a stream."""
    if script.status != 200:
        refusal = Refusal(script.status, "The sandbox was told to fail.")
        return [encode(wire.error(refusal, request_id))]
    error = wire.error_event(request_id)
    if call.stream:
        return arrange(wire.events(call, script), error, script)
    if script.ending == "error-event":  # without a stream: a 200 whose body is an error
        return [encode(error.data)]
    return [encode(wire.answer(call, script))]


def _refuse(wire: Wire, received: Received, refusal: Refusal, request_id: str) -> web.Response:
    received.status = refusal.status
    return web.Response(
        body=encode(wire.error(refusal, request_id)),
        status=refusal.status,
        content_type="application/json",
        headers={wire.request_id_header: request_id},
    )
