"""May this call leave? Named phases, each of which can refuse: who asks, for what, at which most.

The last phase holds that most on every budget at once. Its reservation id is minted before the
store is asked, so that whatever happens afterwards (no answer, a client that left) the hold can be
given back by its id.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from extauthz.identity import short_name
from extauthz.ids import uuid7
from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
    Balance,
    ClockSkewError,
    CounterRangeError,
    KeyGone,
    Paused,
    Refused,
    Release,
    Reserve,
    Reserved,
)
from extauthz.money import AMOUNT_MAX
from extauthz.policies import FIXED_PRICE, Agent, FixedPrice, Line, Policies, Upstream
from extauthz.pricing import CONFIG_PRICE, Estimate, PricedModel, estimate_of, rate_limits
from extauthz.providers import ADAPTERS
from extauthz.providers.base import Edit, Metering, Request, RequestError, RequestFacts, Route
from extauthz.providers.client_headers import refuse_headers
from extauthz.providers.strict_json import must_be_plain
from extauthz.reasons import Decision, Reason
from extauthz.service.call_record import CallRecord, HeldPart
from extauthz.service.capping import (
    cap_range,
    default_cap,
    edits_with,
    with_price_limit,
    written_cap,
)
from extauthz.service.denied import Denied
from extauthz.service.identify import Evidence, Identifier
from extauthz.service.lines import blocking, lines_of, shadow_denies, under_cap, with_limits
from extauthz.service.outgoing import with_outgoing
from extauthz.service.rules import Clock, Rules
from extauthz.service.waiting import HeldRoom
from extauthz.store.base import BooksClosedError, LedgerStore, StoreError

log = logging.getLogger(__name__)

_ROOM_IS_HELD = (Reason.BUDGET_HELD, Reason.TOO_MANY_IN_FLIGHT)
"""Refusals that the end of a call under way may lift. An agent with `max_in_flight: 1` that calls
back to back meets its own last call, whose settlement trails its answer."""


@dataclass(frozen=True, slots=True)
class CallAttributes:
    """One request as Envoy shows it. `path` is the provider's own, without the route's prefix."""

    provider: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    """minted by Envoy; only ever an index"""
    payloads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """of the tokens that Envoy has verified"""
    principal: str = ""
    """of the client certificate that Envoy has verified"""
    is_whole: bool = True
    """whether `body` is all that goes on to the provider"""


@dataclass(slots=True)
class Verdict:
    """What Check answers, and what the log line and the metrics say about it."""

    decision: Decision
    reason: Reason
    decision_id: str
    at_ms: int
    request_id: str = ""
    status: int = 200
    message: str = ""
    agent: Agent | None = None
    key_hash: str = ""
    is_stored_key: bool = False
    """whether the ledger keeps the key"""
    upstream: Upstream | None = None
    endpoint: str = ""
    """the name of one of the API's endpoints"""
    facts: RequestFacts | None = None
    names: tuple[str, ...] = ()
    """every name that the model, or one that may answer in its place, goes by"""
    priced: PricedModel | None = None
    estimate: Estimate | None = None
    edits: tuple[Edit, ...] = ()
    default_cap: int | None = None
    """what is written into a call that names no output cap"""
    cap_max: int | None = None
    """the largest cap that whatever answers is known to take"""
    output_cap: int | None = None
    """what was written into the body as its output cap; None: nothing was"""
    record: CallRecord | None = None
    lines: tuple[Line, ...] = ()
    balances: tuple[Balance, ...] = ()
    shown: int | None = None
    """index of the line that refused"""
    waited_ms: int = 0


class RequestReader(Protocol):
    """Reads a body into facts, without letting a large one delay anybody else."""

    async def read(self, api: str, endpoint: str, request: Request, *, caller: str) -> RequestFacts:
        """As `Adapter.read_request`; `caller` has its own share of the room for large bodies."""


class Abandoner(Protocol):
    """Gives back what a Check held whose answer nobody waits for any more."""

    def abandon(self, command: Release) -> None:
        """Make sure, in the background, that this reservation holds nothing."""


@dataclass(slots=True)
class Authorizer:
    """Decides calls. Never raises for a call: whatever fails is a verdict, and closed."""

    rules: Rules
    store: LedgerStore
    identifier: Identifier
    reader: RequestReader
    room: HeldRoom
    abandoner: Abandoner
    clock: Clock
    open_calls: dict[str, CallRecord] = field(default_factory=dict)
    """by Envoy's request id: for entries of calls whose Check answer Envoy did not take"""

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
            await self._reserve(call, agent, verdict)
        except Denied as denied:
            verdict.reason, verdict.status = denied.reason, denied.status
            verdict.message = denied.message
            if denied.status == 503:
                verdict.decision = Decision.ERROR
        except Exception:
            log.exception("a call was refused because of an error of this program")
            verdict.decision, verdict.status = Decision.ERROR, 503
            verdict.reason = Reason.SERVICE_UNAVAILABLE
            verdict.message = "the budget service met an error of its own: try again shortly"
        return verdict

    async def refuse_by_headers(self, call: CallAttributes, body_bytes_max: int) -> Verdict | None:
        """What can be refused before a large body is read; None: nothing can."""
        at_ms = self.clock()
        verdict = Verdict(Decision.DENY, Reason.OK, uuid7(at_ms), at_ms, call.request_id)
        try:
            route = self._route(call, verdict)
            await self._identify(call, route, verdict)
            _must_not_announce_more(call, body_bytes_max)
        except Denied as denied:
            verdict.reason, verdict.status = denied.reason, denied.status
            verdict.message = denied.message
            if denied.status == 503:
                verdict.decision = Decision.ERROR
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
        evidence = Evidence(call.headers, call.payloads, call.principal)
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
            must_be_plain(call.headers)
            request = Request(call.body, route.path_model, call.headers.get("content-type", ""))
            facts = await self.reader.read(
                upstream.api, verdict.endpoint, request, caller=agent.name
            )
        except RequestError as error:
            status = {Reason.BODY_TOO_LARGE: 413, Reason.UNMETERED_ENDPOINT: 403}
            raise Denied(error.reason, status.get(error.reason, 400), error.message) from None
        verdict.facts = replace(
            facts,
            model=_model_of(upstream, facts.model),
            price_contexts=tuple({**one, **upstream.price_context} for one in facts.price_contexts),
        )
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
        verdict.facts = with_price_limit(facts, rate_limits(bounds))

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

    async def _reserve(self, call: CallAttributes, agent: Agent, verdict: Verdict) -> None:
        """Phase 5: hold it on every budget at once; wait a little for room that is only held."""
        give_up_ms = verdict.at_ms + agent.hold_wait_ms
        while True:
            at_ms = self.clock()
            policies = self.rules.policies
            command, lines, record = self._command(policies, agent, verdict, at_ms)
            answer = await self._ask_store(command, policies.settle_horizon_ms)
            lines = with_limits(lines, answer.limits)
            verdict.lines, verdict.balances = lines, answer.balances
            if isinstance(answer, Reserved):
                break
            refusal = blocking(lines, verdict.balances)
            assert refusal is not None, "the store refuses only where a line stands in the way"
            reason, verdict.shown = refusal
            left_ms = give_up_ms - self.clock()
            if reason not in _ROOM_IS_HELD or left_ms <= 0 or self.room.is_full:
                raise _denied(reason, agent, verdict.upstream, lines[verdict.shown])
            await self.room.wait([line.hold.key for line in lines], left_ms / 1000)
        verdict.waited_ms = self.clock() - verdict.at_ms
        verdict.lines = lines = under_cap(lines, answer.output_cap)
        verdict.record = self._granted(verdict, record, answer.output_cap)
        if call.request_id:  # an empty one would be the index of every call without
            self.open_calls[call.request_id] = verdict.record
        before = [
            Balance(balance.spent, balance.held - line.hold.amount)
            for line, balance in zip(lines, verdict.balances, strict=True)
        ]
        shadow = shadow_denies(lines, before)
        verdict.decision = Decision.SHADOW_DENY if shadow else Decision.ALLOW

    def _command(
        self, policies: Policies, agent: Agent, verdict: Verdict, at_ms: int
    ) -> tuple[Reserve, tuple[Line, ...], CallRecord]:
        facts, estimate = verdict.facts, verdict.estimate
        assert facts is not None
        assert estimate is not None
        assert verdict.upstream is not None
        names = verdict.names
        budgets = policies.budgets_for(agent, verdict.key_hash, verdict.upstream.name, names)
        if not any(budget.scope.covers and not budget.shadow for budget in budgets):
            raise Denied(
                Reason.AGENT_WITHOUT_BUDGET,
                403,
                f"agent '{agent.name}' has no budget for this model: give it one that covers it",
            )
        budgets = with_outgoing(
            budgets, policies, agent, verdict.key_hash, verdict.upstream.name, names, at_ms
        )
        may_be = cap_range(agent, budgets, facts, estimate, verdict.cap_max)
        lines = lines_of(agent, budgets, estimate, policies, at_ms, may_be)
        id_, horizon_ms = uuid7(at_ms, verdict.request_id), policies.settle_horizon_ms
        record = _record(verdict, lines, id_, at_ms, horizon_ms)
        command = Reserve(
            record.reservation_id,
            agent.org,
            at_ms,
            at_ms + policies.lease_ms,
            tuple(line.hold for line in lines),
            pausable_as=agent.pausable_as,
            key_hash=verdict.key_hash if verdict.is_stored_key else "",
            estimate_nanousd=record.estimate_nanousd,
            # (of a call that may be capped, the store writes the estimate once it has the cap)
            particulars=record.particulars(**({"estimate_nanousd": None} if may_be else {})),
            remember_until_ms=at_ms + policies.settle_horizon_ms + 2 * CLOCK_SKEW_MS_MAX,
            cap_range=may_be,
        )
        return command, lines, record

    @staticmethod
    def _granted(verdict: Verdict, record: CallRecord, granted: int | None) -> CallRecord:
        """Write the cap that the store has chosen; the record of what it holds under it."""
        facts, estimate = verdict.facts, verdict.estimate
        assert facts is not None
        assert estimate is not None
        verdict.output_cap = written_cap(granted, verdict.default_cap, facts, estimate)
        verdict.edits = edits_with(facts, verdict.output_cap)
        if granted is None:
            return replace(record, output_cap=verdict.output_cap)
        cost = estimate.nanousd_under.at(granted)
        parts = _parts(verdict.lines)
        return replace(record, parts=parts, estimate_nanousd=cost, output_cap=granted)

    async def _ask_store(self, command: Reserve, settle_horizon_ms: int) -> Reserved | Refused:
        """Reserve; whatever goes wrong on the way, the reservation is abandoned by its id."""
        keys = tuple(hold.key for hold in command.holds)
        abandon = Release(
            command.id,
            command.org,
            command.at_ms,
            settle_horizon_ms,
            keys,
            abandoned=True,
            particulars=command.particulars,
        )
        try:
            answer = await self.store.reserve(command)
        except asyncio.CancelledError:
            # The client has left, or Envoy's deadline has passed. The store finishes what it was
            # told (rule 8), so it is told next to give it back.
            self.abandoner.abandon(abandon)
            raise
        except BooksClosedError as error:
            raise Denied(
                Reason.STORE_UNAVAILABLE,
                503,
                "the budget store has lost its books, so no call is let through until an operator "
                "has put them back",
            ) from error
        except (StoreError, ClockSkewError, CounterRangeError) as error:
            self.abandoner.abandon(abandon)
            raise Denied(
                Reason.STORE_UNAVAILABLE,
                503,
                "the budget store does not answer, so no call is let through: try again shortly",
            ) from error
        except Exception:
            self.abandoner.abandon(abandon)
            raise
        if isinstance(answer, Reserved | Refused):
            return answer
        if isinstance(answer, Paused):
            raise Denied(Reason.AGENT_PAUSED, 403, _paused(answer))
        if isinstance(answer, KeyGone):
            raise self.identifier.gone(command.key_hash)
        self.abandoner.abandon(abandon)
        raise Denied(Reason.STORE_UNAVAILABLE, 503, "the reservation came too late: try again")


def _is_free(route: Route | FixedPrice) -> bool:
    """Whether a call needs no reservation."""
    return isinstance(route, Route) and route.endpoint.metering is Metering.FREE


def _record(
    verdict: Verdict, lines: Sequence[Line], id_: str, at_ms: int, settle_horizon_ms: int
) -> CallRecord:
    assert verdict.agent is not None
    assert verdict.upstream is not None
    assert verdict.facts is not None
    assert verdict.estimate is not None
    return CallRecord(
        reservation_id=id_,
        decision_id=verdict.decision_id,
        org=verdict.agent.org,
        agent=verdict.agent.name,
        key=short_name(verdict.key_hash),
        team=verdict.agent.team or "",
        provider=verdict.upstream.name,
        endpoint=verdict.endpoint,
        model=verdict.facts.model,
        reserved_at_ms=at_ms,
        settle_horizon_ms=settle_horizon_ms,
        estimate_nanousd=min(verdict.estimate.nanousd, AMOUNT_MAX),
        price=verdict.priced.price_version if verdict.priced else CONFIG_PRICE,
        parts=_parts(lines),
    )


def _parts(lines: Sequence[Line]) -> tuple[HeldPart, ...]:
    return tuple(
        HeldPart(
            line.hold.key,
            line.budget.unit.value if line.budget else "in_flight",
            line.hold.amount,
            line.hold.forget_at_ms,
        )
        for line in lines
    )


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


def _model_of(upstream: Upstream, name: str) -> str:
    """The model that a call names; where it names a deployment, the one behind that."""
    if not ADAPTERS[upstream.api].names_deployments:
        return name
    model = upstream.deployments.get(name)
    if model is None:
        raise Denied(
            Reason.UNPRICED_MODEL,
            403,
            "which model this deployment is, is not known, so neither is its price: name it under "
            f"providers.{upstream.name}.deployments",
        )
    return model


def _paused(answer: Paused) -> str:
    if answer.until_ms is None:
        return "this agent is paused until an operator resumes it"
    end = datetime.fromtimestamp(answer.until_ms / 1000, UTC)
    return f"this agent is paused until {end:%Y-%m-%dT%H:%M:%SZ}"


def _denied(reason: Reason, agent: Agent, upstream: Upstream | None, line: Line) -> Denied:
    what = f"the budget '{line.budget.id}'" if line.budget else f"agent '{agent.name}'"
    message = {
        Reason.REQUEST_TOO_LARGE: f"the most this call can cost is above the limit of {what}: "
        "lower its output cap, or shorten it",
        Reason.BUDGET_EXHAUSTED: f"{what} is exhausted: no call will be let through before it "
        "resets or its limit is raised",
        Reason.TOO_MANY_IN_FLIGHT: f"{what} has as many calls in flight as it may: try again when "
        "one has ended",
        Reason.BUDGET_HELD: f"what is left of {what} is held by calls in flight: try again when "
        "one has ended",
    }[reason]
    status = 403 if reason is Reason.REQUEST_TOO_LARGE else agent.denied_status
    if reason is Reason.BUDGET_EXHAUSTED and status == 429 and upstream is not None:
        status = ADAPTERS[upstream.api].exhausted_status
    return Denied(reason, status, message)
