"""Hold the most that a call can cost on every budget at once.

Its reservation id is minted before the store is asked, so that whatever happens afterwards (no
answer, a client that left) the hold can be given back by its id.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from extauthz.identity import short_name
from extauthz.ids import uuid7
from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
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
from extauthz.policies import Agent, Line, Policies, Upstream
from extauthz.pricing import CONFIG_PRICE
from extauthz.providers import ADAPTERS
from extauthz.reasons import Decision, Reason
from extauthz.service.call_record import CallRecord, HeldPart
from extauthz.service.capping import cap_range, edits_with, written_cap
from extauthz.service.denied import Denied
from extauthz.service.identify import Identifier
from extauthz.service.lines import blocking, lines_of, shadow_denies, with_limits
from extauthz.service.outgoing import with_outgoing
from extauthz.service.rules import Clock, Rules
from extauthz.service.verdict import CallAttributes, Verdict
from extauthz.service.waiting import HeldRoom
from extauthz.store.base import BooksClosedError, LedgerStore, StoreError

_ROOM_IS_HELD = (Reason.BUDGET_HELD, Reason.TOO_MANY_IN_FLIGHT)
"""Refusals that the end of a call under way may lift. An agent with `max_in_flight: 1` that calls
back to back meets its own last call, whose settlement trails its answer."""


class Abandoner(Protocol):
    """Gives back what a Check held whose answer nobody waits for any more."""

    def abandon(self, command: Release) -> None:
        """Make sure, in the background, that this reservation holds nothing."""


@dataclass(slots=True)
class Reserving:
    """The last phase of a decision."""

    rules: Rules
    store: LedgerStore
    identifier: Identifier
    room: HeldRoom
    abandoner: Abandoner
    clock: Clock
    open_calls: dict[str, CallRecord] = field(default_factory=dict)
    """by Envoy's request id: for entries of calls whose Check answer Envoy did not take"""

    async def reserve(self, call: CallAttributes, agent: Agent, verdict: Verdict) -> None:
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
        verdict.record = self._granted(verdict, record, answer.output_cap)
        if call.request_id:  # an empty one would be the index of every call without
            self.open_calls[call.request_id] = verdict.record
        shadow = shadow_denies(lines, verdict.balances, answer.output_cap)
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
        record = _record(verdict, id_, at_ms, horizon_ms)
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
        parts = _parts(verdict.lines, granted)
        if granted is None:
            return record._replace(parts=parts, output_cap=verdict.output_cap)
        cost = estimate.nanousd_under.at(granted)
        return record._replace(parts=parts, estimate_nanousd=cost, output_cap=granted)

    async def _ask_store(self, command: Reserve, settle_horizon_ms: int) -> Reserved | Refused:
        """Reserve; whatever goes wrong on the way, the reservation is abandoned by its id."""

        def abandon() -> None:
            self.abandoner.abandon(
                Release(
                    command.id,
                    command.org,
                    command.at_ms,
                    settle_horizon_ms,
                    tuple(hold.key for hold in command.holds),
                    abandoned=True,
                    particulars=command.particulars,
                )
            )

        try:
            answer = await self.store.reserve(command)
        except asyncio.CancelledError:
            # The client has left, or Envoy's deadline has passed. The store finishes what it was
            # told (rule 8), so it is told next to give it back.
            abandon()
            raise
        except BooksClosedError as error:
            raise Denied(
                Reason.STORE_UNAVAILABLE,
                503,
                "the budget store has lost its books, so no call is let through until an operator "
                "has put them back",
            ) from error
        except (StoreError, ClockSkewError, CounterRangeError) as error:
            abandon()
            raise Denied(
                Reason.STORE_UNAVAILABLE,
                503,
                "the budget store does not answer, so no call is let through: try again shortly",
            ) from error
        except Exception:
            abandon()
            raise
        if isinstance(answer, Reserved | Refused):
            return answer
        if isinstance(answer, Paused):
            raise Denied(Reason.AGENT_PAUSED, 403, _paused(answer))
        if isinstance(answer, KeyGone):
            raise self.identifier.gone(command.key_hash)
        abandon()
        raise Denied(Reason.STORE_UNAVAILABLE, 503, "the reservation came too late: try again")


def _record(verdict: Verdict, id_: str, at_ms: int, settle_horizon_ms: int) -> CallRecord:
    """All that is known of the call before the store has chosen what it holds."""
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
        parts=(),
    )


def _parts(lines: Sequence[Line], cap: int | None) -> tuple[HeldPart, ...]:
    return tuple(
        [
            HeldPart(
                hold.key,
                budget.unit.value if budget else "in_flight",
                hold.amount_under(cap),
                hold.forget_at_ms,
            )
            for budget, _, hold in lines
        ]
    )


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
