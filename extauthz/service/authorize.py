"""May this call leave? Named phases, each of which can refuse: who asks, for what, at which most.

The last phase, `reserving`, holds that most on every budget at once.
"""

import logging
from dataclasses import dataclass, field, replace
from typing import Protocol

from extauthz.errors import where
from extauthz.ids import uuid7
from extauthz.policies import FIXED_PRICE, Agent, FixedPrice, Upstream
from extauthz.pricing import Estimate, PricedModel, estimate_of, rate_limits
from extauthz.providers import ADAPTERS
from extauthz.providers.base import Metering, Request, RequestError, RequestFacts, Route
from extauthz.providers.client_headers import refuse_headers
from extauthz.providers.strict_json import must_be_plain
from extauthz.reasons import Decision, Reason
from extauthz.service.capping import default_cap, with_price_limit
from extauthz.service.denied import Denied
from extauthz.service.identify import Evidence, Identifier
from extauthz.service.reserving import Reserving
from extauthz.service.rules import Clock, Rules
from extauthz.service.uploads import Uploads
from extauthz.service.verdict import CallAttributes, Verdict

log = logging.getLogger(__name__)

_OWN_ERROR = Denied(
    Reason.SERVICE_UNAVAILABLE,
    503,
    "the budget service met an error of its own: try again shortly",
)


class RequestReader(Protocol):
    """Reads a body into facts, without letting a large one delay anybody else."""

    async def read(self, api: str, endpoint: str, request: Request, *, caller: str) -> RequestFacts:
        """As `Adapter.read_request`; `caller` has its own share of the room for large bodies."""


@dataclass(slots=True)
class Authorizer:
    """Decides calls. Never raises for a call: whatever fails is a verdict, and closed."""

    rules: Rules
    identifier: Identifier
    reader: RequestReader
    reserving: Reserving
    clock: Clock
    uploads: Uploads = field(default_factory=Uploads)

    async def authorize(self, call: CallAttributes) -> Verdict:
        """Decide one call; on allow, its estimate is held on every budget."""
        at_ms = self.clock()
        verdict = Verdict(Decision.DENY, Reason.OK, uuid7(at_ms), at_ms, call.request_id)
        try:
            route = self._route(call, verdict)
            agent = await self._identify(call, route, verdict)
            _must_be_whole(call)
            if not await self._read(call, agent, route, verdict):
                verdict.decision = Decision.ALLOW
                return verdict
            self._permit(agent, verdict)
            await self.reserving.reserve(call, agent, verdict)
        except Denied as denied:
            verdict.deny(denied)
        except Exception as error:  # noqa: BLE001 - whatever it is, no call leaves because of it
            log.error("a call was refused: an error of this program: %s", where(error))  # noqa: TRY400
            verdict.deny(_OWN_ERROR)
        finally:
            self.uploads.end(call.request_id)
        return verdict

    async def refuse_by_headers(self, call: CallAttributes, body_bytes_max: int) -> Verdict | None:
        """What can be refused before a large body is read; None: nothing can."""
        at_ms = self.clock()
        verdict = Verdict(Decision.DENY, Reason.OK, uuid7(at_ms), at_ms, call.request_id)
        try:
            route = self._route(call, verdict)
            agent = await self._identify(call, route, verdict)
            _must_not_announce_more(call, body_bytes_max)
            length = call.headers.get("content-length", "")
            self.uploads.begin(call.request_id, agent, length, at_ms)
        except Denied as denied:
            verdict.deny(denied)
            return verdict
        return None

    def _route(self, call: CallAttributes, verdict: Verdict) -> Route | FixedPrice:
        """Phase 1: the provider, as Envoy's route names it, and which endpoint of it."""
        upstream = self.rules.policies.upstreams.get(call.provider)
        if upstream is None:
            raise Denied(
                Reason.UNKNOWN_ROUTE, 403, "this path leads to no provider: check the base URL"
            )
        verdict.upstream = upstream
        route = ADAPTERS[upstream.api].route(call.method, call.path, call.query)
        if route is not None:
            verdict.endpoint = route.endpoint.name
            return route
        price = upstream.fixed_price(call.method, call.path)
        if price is not None:
            verdict.endpoint = FIXED_PRICE
            return price
        raise Denied(
            Reason.UNMETERED_ENDPOINT,
            403,
            f"{call.method} of this path is not metered, so it is not allowed: use the endpoints "
            "that the documentation lists, or have it allowed at a fixed price under "
            f"providers.{upstream.name}.endpoints",
        )

    async def _identify(
        self, call: CallAttributes, route: Route | FixedPrice, verdict: Verdict
    ) -> Agent:
        """Phase 2: who asks, by nothing that the client could make up."""
        evidence = Evidence(
            call.headers, call.payloads, call.principal, call.certificate_ends_at_ms
        )
        caller = await self.identifier.identify(evidence, anew=_is_free(route))
        verdict.agent = agent = caller.agent
        verdict.key_hash, verdict.is_stored_key = caller.key_hash, caller.is_stored
        policies = self.rules.policies
        if not policies.has_budget(agent, verdict.key_hash):
            raise Denied(
                Reason.AGENT_WITHOUT_BUDGET,
                403,
                f"agent '{agent.name}' has no budget: give it one under "
                f"agents.{agent.name}.budgets",
            )
        return agent

    async def _read(
        self, call: CallAttributes, agent: Agent, route: Route | FixedPrice, verdict: Verdict
    ) -> bool:
        """Phase 3: what is asked for. False for a free endpoint, which needs no reservation."""
        upstream = verdict.upstream
        assert upstream is not None
        if isinstance(route, FixedPrice):
            verdict.facts = RequestFacts(
                model=route.path, stream=False, input_tokens_max=0, output_tokens_cap=0
            )
            verdict.estimate = Estimate(route.nanousd, 0, 0)
            return True
        if _is_free(route):
            return False
        try:
            refuse_headers(call.headers, upstream.allowed_headers)
            must_be_plain(call.headers, form=route.endpoint.reads_form)
            request = Request(call.body, route.path_model, call.headers.get("content-type", ""))
            facts = await self.reader.read(
                upstream.api, verdict.endpoint, request, caller=agent.name
            )
        except RequestError as error:
            status = {
                Reason.BODY_TOO_LARGE: 413,
                Reason.UNMETERED_ENDPOINT: 403,
                Reason.SERVICE_UNAVAILABLE: 503,
            }
            raise Denied(error.reason, status.get(error.reason, 400), error.message) from None
        verdict.facts = _as_configured(facts, upstream)
        return True

    def _permit(self, agent: Agent, verdict: Verdict) -> None:
        """Phase 4: whether the agent may, and the most that it can cost."""
        facts, upstream = verdict.facts, verdict.upstream
        assert facts is not None
        assert upstream is not None
        if not all(agent.allows(model) for model in (facts.model, *facts.fallback_models)):
            raise Denied(
                Reason.MODEL_NOT_ALLOWED,
                403,
                f"agent '{agent.name}' may not use this model: its models are "
                f"{', '.join(agent.models_allowed)}",
            )
        verdict.names = (facts.model,)
        if verdict.estimate is not None:  # of a fixed price
            return
        each = [
            self._priced(upstream, facts, model, verdict.at_ms)
            for model in (facts.model, *facts.fallback_models)
        ]
        verdict.names = (facts.model, *facts.fallback_models, *(one.info.id for one in each))
        for one in each:
            facts = one.bounded(facts)
        most = min(one.output_tokens_max for one in each)
        verdict.default_cap = default_cap(agent.output_caps, facts, verdict.names, most)
        known = [one.cap_max for one in each if one.cap_max is not None]
        known_of_all = min(known) if len(known) == len(each) else None
        verdict.cap_max = verdict.default_cap or known_of_all
        verdict.priced = each[0]
        bounds = [one.bound(facts, verdict.at_ms, verdict.default_cap) for one in each]
        verdict.estimate = estimate_of(bounds, facts)
        if facts.price_slot is not None:
            facts = with_price_limit(facts, rate_limits(bounds))
        verdict.facts = facts

    def _priced(
        self, upstream: Upstream, facts: RequestFacts, model: str, at_ms: int
    ) -> PricedModel:
        """The price of one of the models that may answer."""
        priced = self.rules.prices.find(upstream.name, upstream.price_provider, model)
        if priced is None:
            raise Denied(
                Reason.UNPRICED_MODEL,
                403,
                "this model has no known price, so it is not allowed: add it under 'prices'",
            )
        if not priced.covers(facts, at_ms):
            raise Denied(
                Reason.UNPRICED_MODEL,
                403,
                "what this call asks for (audio, a search, or to be served faster) has no known "
                "price for this model, so it is not allowed: send the call without it",
            )
        return priced


def _is_free(route: Route | FixedPrice) -> bool:
    """Whether a call needs no reservation."""
    return isinstance(route, Route) and route.endpoint.metering is Metering.FREE


def _must_be_whole(call: CallAttributes) -> None:
    """A key may hide, or stand twice, in a tail that Check does not see."""
    if not call.is_whole:
        raise Denied(
            Reason.BODY_TOO_LARGE,
            413,
            f"the body is larger than the {len(call.body)} bytes that a budget can be checked "
            "for: send a smaller one",
        )


def _must_not_announce_more(call: CallAttributes, body_bytes_max: int) -> None:
    length = call.headers.get("content-length", "")
    if length.isdecimal() and int(length) > body_bytes_max:
        raise Denied(
            Reason.BODY_TOO_LARGE,
            413,
            f"the body is larger than the {body_bytes_max} bytes that a budget can be checked "
            "for: send a smaller one",
        )


def _as_configured(facts: RequestFacts, upstream: Upstream) -> RequestFacts:
    """With what the config knows of its provider: the model behind a name, what its URL says."""
    if ADAPTERS[upstream.api].names_deployments:
        facts = replace(facts, model=_model_of(upstream, facts.model))
    if upstream.price_context:
        each = tuple({**one, **upstream.price_context} for one in facts.price_contexts)
        facts = replace(facts, price_contexts=each)
    if facts.counted:
        counted = {kind: _most_of(upstream, kind, n) for kind, n in facts.counted.items()}
        facts = replace(facts, counted=counted)
    return facts


def _model_of(upstream: Upstream, name: str) -> str:
    """The model behind the deployment that a call names."""
    model = upstream.deployments.get(name)
    if model is None:
        raise Denied(
            Reason.UNPRICED_MODEL,
            403,
            "which model this deployment is, is not known, so neither is its price: name it under "
            f"providers.{upstream.name}.deployments",
        )
    return model


def _most_of(upstream: Upstream, kind: str, count: int | None) -> int:
    """How many of a kind are billed: as the request tells it, else at most what the config says."""
    if count is not None:
        return count
    most = upstream.max_audio_seconds if kind == "audio_seconds" else None
    if most is None:
        raise Denied(
            Reason.UNMETERED_ENDPOINT,
            403,
            "this model is billed by the second of the sound, and nothing in a request bounds its "
            "seconds: use gpt-4o-transcribe or gpt-4o-mini-transcribe, or have the most that a "
            f"call is held at named under providers.{upstream.name}.max_audio_seconds",
        )
    return most
