"""What the product knows of a provider's API: one adapter each, all of this shape, all pure.

An adapter is a table of endpoints. An endpoint reads a request into facts (never the prompt
itself), says which bytes of it to change, and reads usage out of what Envoy captured of the
response. The adapter writes refusals that its SDKs know.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import unquote

from extauthz.reasons import Reason
from extauthz.usage import UNKNOWN_USAGE, UsageReport

REGIONAL: Mapping[str, str] = {"location": "regional"}
"""The price context of a call that has to be answered within a region."""


class Metering(StrEnum):
    """Whether a call to an endpoint costs money."""

    BILLED = "billed"
    FREE = "free"


class Edit(NamedTuple):
    """Replace `dropped` bytes at `offset` of the request body by `text`."""

    offset: int
    dropped: int
    text: str


class CapSlot(NamedTuple):
    """Where a cap can be written into the body; its JSON goes between the two texts.

    `named` is what the client wrote there: a cap on output is lowered, never raised.
    """

    offset: int
    dropped: int
    before: str
    after: str
    named: int | None = None

    def edit(self, cap: int | str) -> Edit:
        """The edit that writes this cap."""
        if self.named is not None and isinstance(cap, int):
            cap = min(cap, self.named)
        return Edit(self.offset, self.dropped, f"{self.before}{cap}{self.after}")


@dataclass(frozen=True, slots=True)
class Request:
    """A request as its endpoint's reader gets it.

    Attributes:
        body: all of it.
        path_model: the model, where the path names it.
        content_type: the header; "" where there is none.
    """

    body: bytes
    path_model: str | None = None
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What decides the most that a call can cost. Missing facts make it larger, never smaller.

    Attributes:
        model: as the client wrote it.
        stream: whether the client asked for a stream.
        input_tokens_max: upper bound of the input but for its `images`; None: as much as the
            model's context takes.
        images: how many pictures go in, each at most what the model takes for one.
        output_tokens_cap: the client's own cap for one answer; None: it named none.
        answers: how many answers are billed (`n`).
        extra_output_tokens: output that is billed beyond the cap (rejected predictions).
        cache_writes: whether prompt caching can bill above the input price.
        media: whether anything but text goes in or out (then the dearest modality is assumed).
        audio: whether sound may go in or out: it needs a price of its own.
        heard: whether sound goes in and none comes out: it needs a price of its own.
        price_contexts: every price context that may be served (service tiers, speeds).
        premium: the dearer context that the client asks for: it needs a price of its own.
        edits: byte edits that metering needs (asking a stream for its usage).
        cap_slot: where an output cap can be written, over the client's own where it named one;
            None: the call takes none.
        other_caps: what else the client named as a cap: which of them its server obeys differs, so
            what is written into one is written into all.
        thinking_tokens: of the output, what the client lets the model think: a cap below that is
            of no use.
        bills: the price kinds, in the keys of genai-prices, without which the call is unpriced.
        input_readings: how often the input can be billed: once for each round in which the
            provider itself runs a tool.
        fallback_models: what else may answer, at the client's word.
        price_slot: where the highest price per million tokens can be written, at which the
            provider then lets nobody dearer answer.
        counted: usage beside tokens that is billed, as the request itself tells it (the characters
            to be spoken); None: nothing in it does (the seconds of a sound), so the config has to
            name a most.
        unasked_usage: whether `edits` ask for an event of usage that the client did not ask for:
            it is taken out of the answer where it comes in one piece.
    """

    model: str
    stream: bool
    input_tokens_max: int | None
    output_tokens_cap: int | None
    answers: int = 1
    extra_output_tokens: int = 0
    images: int = 0
    cache_writes: bool = False
    media: bool = False
    audio: bool = False
    heard: bool = False
    price_contexts: tuple[Mapping[str, str], ...] = ({},)
    premium: Mapping[str, str] | None = None
    edits: tuple[Edit, ...] = ()
    cap_slot: CapSlot | None = None
    other_caps: tuple[CapSlot, ...] = ()
    thinking_tokens: int = 0
    bills: tuple[str, ...] = ("input_mtok", "output_mtok")
    input_readings: int = 1
    fallback_models: tuple[str, ...] = ()
    price_slot: CapSlot | None = None
    counted: Mapping[str, int | None] = field(default_factory=dict)
    unasked_usage: bool = False


@dataclass(frozen=True, slots=True)
class CapturedResponse:
    """What Envoy's Lua lifted out of a response: raw JSON texts of root-level fields, or None."""

    usage: str | None = None
    usage_start: str | None = None
    model: str | None = None
    service_tier: str | None = None
    error: bool = False
    complete: bool = False
    error_code: str | None = None
    metrics: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal before it has a provider's shape. `message` says what happened and what to do."""

    status: int
    reason: Reason
    message: str
    decision_id: str
    details: Mapping[str, str] = field(default_factory=dict)


class RequestError(ValueError):
    """A request that cannot be metered, with the reason to refuse it for."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives pickling between processes
        self.reason = reason
        self.message = message


RequestReader = Callable[[Request], RequestFacts]
"""Reads the facts of a billed request.

Raises RequestError where the body is unreadable, ambiguous, or asks for what cannot be metered.
"""

UsageReader = Callable[[CapturedResponse], UsageReport]
"""What the response says was used; unreadable or contradictory usage is unknown."""

UNBILLED_STATUS = frozenset({400, 401, 403, 404, 405, 413, 415, 422, 429, 500, 503, 529})
"""A provider that answers so has billed nothing. Everything that is not on the list is charged."""

_NO_QUERY = re.compile("")
_NO_URL = re.compile("(?!)")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of an API. What has no request reader is free.

    Attributes:
        name: short; it travels with the call to its settlement. Endpoints of an API that share a
            name are read alike.
        method: in capitals.
        path: all of the provider's own path; a group `model` where it names the model.
        read_request: None for an endpoint that costs nothing.
        read_usage: what the answer tells.
        query: all of the query that may stand behind the path.
        cap_fields: the names under which a body can carry its output cap, the best first.
        reads_form: whether the body is a form (multipart/form-data) and no JSON.
    """

    name: str
    method: str
    path: re.Pattern[str]
    read_request: RequestReader | None
    read_usage: UsageReader
    query: re.Pattern[str] = _NO_QUERY
    cap_fields: tuple[str, ...] = ()
    reads_form: bool = False

    @property
    def metering(self) -> Metering:
        """Whether a call costs money."""
        return Metering.FREE if self.read_request is None else Metering.BILLED


def free(name: str, method: str, path: str, *, query: str = "") -> Endpoint:
    """An endpoint that costs nothing: it is passed on without a reservation."""
    return Endpoint(
        name, method, re.compile(path), None, lambda _: UNKNOWN_USAGE, re.compile(query)
    )


def billed(
    name: str,
    path: str,
    read_request: RequestReader,
    read_usage: UsageReader,
    *,
    query: str = "",
    cap_fields: tuple[str, ...] = (),
    reads_form: bool = False,
) -> Endpoint:
    """An endpoint that costs money; all of them are posted to."""
    return Endpoint(
        name,
        "POST",
        re.compile(path),
        read_request,
        read_usage,
        re.compile(query),
        cap_fields,
        reads_form,
    )


class Route(NamedTuple):
    """Which endpoint a call goes to, and the model where its path names one."""

    endpoint: Endpoint
    path_model: str | None


@dataclass(frozen=True, slots=True)
class Adapter:
    """One provider API.

    Attributes:
        price_provider: the genai-prices id whose list applies where the upstream's URL does not
            decide.
        endpoints: all that is metered; everything else is refused. The first is the main one.
        refusal_body: writes a JSON body in the provider's own error shape.
        refusal_headers: what its refusals of a status have beside the body.
        exhausted_status: of a refusal for a spent budget, where the config does not say otherwise
            than 429: some SDKs ask again after every 429, whatever its headers say.
        credential_header: where the provider's own key goes, in lower case.
        credential_prefix: what stands before it there.
        unbilled_status: statuses of the provider's own that prove that nothing was billed.
        unbilled_codes: codes of a 400 that prove it, where the status alone does not.
        names_deployments: whether calls name a deployment, whose model the config tells.
        bills_audio_seconds: whether it has models that are billed by the second of a sound that is
            sent, of which nothing in a request tells how many they are.
        key_parameter: the query parameter in which its clients may send their key; Envoy moves it
            to `credential_header` before anything reads the request.
        regional_upstream: URLs of upstreams that answer within a region.
    """

    price_provider: str
    endpoints: tuple[Endpoint, ...]
    refusal_body: Callable[[Refusal], bytes]
    credential_header: str = "authorization"
    credential_prefix: str = "Bearer "
    unbilled_status: frozenset[int] = UNBILLED_STATUS
    unbilled_codes: frozenset[str] = frozenset()
    names_deployments: bool = False
    bills_audio_seconds: bool = False
    key_parameter: str | None = None
    regional_upstream: re.Pattern[str] = _NO_URL
    refusal_headers: Callable[[int], Mapping[str, str]] = lambda _: {}
    exhausted_status: int = 429

    def route(self, method: str, path: str, query: str = "") -> Route | None:
        """The endpoint that a request goes to; None: not metered, so refused."""
        for endpoint in self.endpoints:
            found = endpoint.path.fullmatch(path)
            if found and endpoint.method == method and endpoint.query.fullmatch(query):
                model = found.groupdict().get("model")
                return Route(endpoint, model and unquote(model))
        return None

    def serves(self, method: str, path: str) -> bool:
        """Whether there is an endpoint at this path, with whatever query."""
        return any(
            endpoint.method == method and endpoint.path.fullmatch(path)
            for endpoint in self.endpoints
        )

    def endpoint(self, name: str) -> Endpoint | None:
        """The endpoint of this name; the main one for a call that was recorded without a name."""
        if not name:
            return self.endpoints[0]
        return next((one for one in self.endpoints if one.name == name), None)

    def read_request(self, name: str, request: Request) -> RequestFacts:
        """The facts of a request to the billed endpoint of this name.

        Raises:
            RequestError: the request is unreadable, ambiguous, or asks for what is not metered.
        """
        endpoint = self.endpoint(name)
        assert endpoint is not None
        assert endpoint.read_request is not None
        return endpoint.read_request(request)
