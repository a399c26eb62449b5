"""From a completed call to its ending in the ledger: what it used, what that cost, charged once."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from extauthz.ledger import (
    Charge,
    ClockSkewError,
    CounterRangeError,
    Ending,
    HoldsMismatchError,
    Outcome,
    Release,
    Renew,
    Settle,
)
from extauthz.money import AMOUNT_MAX
from extauthz.policies import FIXED_PRICE, MissingUsage
from extauthz.pricing import CONFIG_PRICE, BillLine
from extauthz.providers import ADAPTERS
from extauthz.service.call_record import CallRecord, HeldPart
from extauthz.service.completed_call import CompletedCall, ending_of
from extauthz.service.completed_call import Ending as Wanted
from extauthz.service.rules import Clock, Rules
from extauthz.service.waiting import HeldRoom
from extauthz.store.base import LedgerStore, StoreError, StoreUnavailableError
from extauthz.usage import UNKNOWN_USAGE, Exactness, UsageReport

log = logging.getLogger(__name__)

_UNKNOWN_MODEL = "unknown"
"""Where no price list names the model: the client's own spelling would be a label without bound."""

RETRYABLE = (StoreError, ClockSkewError)
"""The store did not take the command: the same one again may be taken."""

_AT_ONCE = 8
"""Calls that are settled in one go, in about 2 ms: so long does a Check wait that comes meanwhile,
here and in the store."""

INAPPLICABLE = (HoldsMismatchError, CounterRangeError)
"""The ledger cannot apply the command, now or later; nothing has changed."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of one call, for the log and the metrics. Amounts in nano-USD."""

    call: CompletedCall
    wanted: Wanted
    report: UsageReport
    cost_nanousd: int
    """what the ledger was told the call cost"""
    priced_model: str
    """the price list's name of the model: bounded, so fit for a label"""
    price_version: str | None = None
    """where the price came from; None where nothing was priced"""
    outcome: Outcome = Outcome.SETTLED
    charged: tuple[int, ...] = ()

    @property
    def overshoot_nanousd(self) -> int:
        """How far the cost went beyond the reservation."""
        return max(0, self.cost_nanousd - self.call.record.estimate_nanousd)


class _Reckoned(NamedTuple):
    """What was used and what that costs; None: unknown."""

    report: UsageReport
    cost_nanousd: int | None = None
    model: str = _UNKNOWN_MODEL
    price_version: str | None = None
    bill: tuple[BillLine, ...] = ()
    """what the cost is made of"""


@dataclass(slots=True)
class _Left:
    """What the store did not take.

    Of an org of which it says nothing at all, the rest is not asked about: each would wait as long.
    """

    calls: list[CompletedCall] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)

    def add(self, call: CompletedCall, error: Exception) -> None:
        log.warning("an ending was not taken: %s", error)
        self.calls.append(call)
        if isinstance(error, StoreUnavailableError):
            self.silent.add(call.record.org)


class SettlementObserver(Protocol):
    """Told of every settlement, for logs and metrics."""

    def settled(self, settlement: Settlement) -> None:
        """One call has ended."""


@dataclass(slots=True)
class Settler:
    """Settles entries, in batches.

    Every command is idempotent by the reservation's id, so a retry charges nothing twice.
    """

    rules: Rules
    store: LedgerStore
    room: HeldRoom
    clock: Clock
    observer: SettlementObserver

    async def settle(self, calls: Sequence[CompletedCall]) -> list[CompletedCall]:
        """End (or renew) each call, few at a time. Returns those that the store did not take."""
        left = _Left()
        for at in range(0, len(calls), _AT_ONCE):
            await self._settle_few(calls[at : at + _AT_ONCE], left)
        return left.calls

    async def _settle_few(self, calls: Sequence[CompletedCall], left: _Left) -> None:
        charges: list[tuple[Settlement, Settle]] = []
        for call in calls:
            if call.record.org in left.silent:
                left.calls.append(call)
                continue
            unbilled = self.rules.unbilled_status(call.record.provider, call.captured)
            wanted = ending_of(call, unbilled)
            if wanted is Wanted.CHARGE:
                charges.append(self._price(call))
                continue
            try:
                await (self._renew(call) if wanted is Wanted.RENEW else self._release(call))
            except RETRYABLE as error:
                left.add(call, error)
        if charges:
            await self._charge(charges, left)

    async def _charge(self, charges: list[tuple[Settlement, Settle]], left: _Left) -> None:
        answers = await self.store.settle_many([command for _, command in charges])
        for (settlement, _), answer in zip(charges, answers, strict=True):
            if isinstance(answer, Ending):
                self._tell(settlement, answer.outcome, answer.charged)
            elif isinstance(answer, RETRYABLE):
                left.add(settlement.call, answer)
            else:
                log.error("a settlement cannot be applied: %s", answer)
                self._tell(settlement, Outcome.DEAD_LETTER, ())

    async def _renew(self, call: CompletedCall) -> None:
        policies = self.rules.policies
        reckoned = self._reckon(call)
        report, cost = reckoned.report, reckoned.cost_nanousd
        observed = tuple(
            0 if part.unit == "in_flight" else _amount(part, report, cost) or 0
            for part in call.record.parts
        )
        at_ms = self.clock()
        command = Renew(
            call.record.reservation_id,
            call.record.org,
            at_ms,
            at_ms + policies.lease_ms,
            observed,
            observed_nanousd=cost or 0,
        )
        try:
            await self.store.renew(command)
        except INAPPLICABLE:
            log.exception("a lease cannot be renewed, so it will run out and be charged")

    async def _release(self, call: CompletedCall) -> None:
        settlement = Settlement(call, Wanted.RELEASE, UNKNOWN_USAGE, 0, _UNKNOWN_MODEL)
        try:
            command = self.release_command(call.record, abandoned=not call.left, status=call.status)
            answer = await self.store.release(command)
        except INAPPLICABLE:
            log.exception("a release cannot be applied")
            self._tell(settlement, Outcome.DEAD_LETTER, ())
        else:
            self._tell(settlement, answer.outcome, answer.charged)

    def release_command(
        self, record: CallRecord, *, abandoned: bool = True, status: int | None = None
    ) -> Release:
        """What gives a call's holds back: it never left, or the provider's answer was free."""
        return Release(
            record.reservation_id,
            record.org,
            self.clock(),
            record.settle_horizon_ms,
            tuple(part.key for part in record.parts),
            abandoned=abandoned,
            particulars=record.particulars(status=status),
        )

    def _price(self, call: CompletedCall) -> tuple[Settlement, Settle]:
        record, policies = call.record, self.rules.policies
        reckoned = self._reckon(call)
        report, cost = reckoned.report, reckoned.cost_nanousd
        agent = policies.agents.get(record.agent)
        missing = agent.missing_usage if agent else MissingUsage.ESTIMATE
        charges = tuple(
            Charge(part.key, _charge(part, report, cost, missing), part.forget_at_ms)
            for part in record.parts
        )
        as_usd = HeldPart("", "usd", record.estimate_nanousd, 0)
        told = _charge(as_usd, report, cost, missing)
        command = Settle(
            record.reservation_id,
            record.org,
            self.clock(),
            record.reserved_at_ms,
            record.settle_horizon_ms,
            charges,
            told,
            _particulars(call, reckoned),
        )
        settlement = Settlement(
            call, Wanted.CHARGE, report, told, reckoned.model, reckoned.price_version
        )
        return settlement, command

    def _reckon(self, call: CompletedCall) -> _Reckoned:
        """What was used, and its cost at the served model's price."""
        record = call.record
        if record.endpoint == FIXED_PRICE:
            cost = record.estimate_nanousd
            return _Reckoned(UsageReport(Exactness.EXACT), cost, record.model, CONFIG_PRICE)
        upstream = self.rules.policies.upstreams.get(record.provider)
        endpoint = ADAPTERS[upstream.api].endpoint(record.endpoint) if upstream else None
        if upstream is None or endpoint is None:
            return _Reckoned(UNKNOWN_USAGE)
        told = endpoint.read_usage(call.captured)
        report = told
        if upstream.price_context:
            report = replace(told, price_context={**told.price_context, **upstream.price_context})
        priced = self.rules.prices.settled_at(
            record.provider, upstream.price_provider, record.model, report.served_model
        )
        if priced is None:
            return _Reckoned(report)
        at = (priced.info.id, priced.price_version)
        if report.exactness is Exactness.UNKNOWN:
            return _Reckoned(report, None, *at)
        try:
            cost, at_ms = priced.dearest_cost(report, record.reserved_at_ms, call.ended_at_ms)
            bill = priced.bill(report, at_ms)
        except ValueError:  # usage that contradicts itself is no usage, in any unit
            return _Reckoned(UNKNOWN_USAGE, None, *at)
        return _Reckoned(report, min(cost, AMOUNT_MAX), *at, bill)

    def _tell(self, settlement: Settlement, outcome: Outcome, charged: tuple[int, ...]) -> None:
        self.room.notify(part.key for part in settlement.call.record.parts)
        self.observer.settled(replace(settlement, outcome=outcome, charged=charged))


def _particulars(call: CompletedCall, reckoned: _Reckoned) -> str:
    """What the row of a settlement says: what was asked for, what was used, at which price."""
    report, is_priced = reckoned.report, reckoned.price_version is not None
    is_known = report.exactness is not Exactness.UNKNOWN
    return call.record.particulars(
        status=call.status,
        usage_is=report.exactness.value,
        usage=dict(report.amounts) if is_known else None,
        served_model=report.served_model,
        priced_as=reckoned.model if is_priced else None,
        price_context=dict(report.price_context) or None,
        price=reckoned.price_version,
        # So that the cost can be explained when the price list has long been another.
        bill=[line.to_json() for line in reckoned.bill] or None,
        told_cost_usd=None if report.told_cost_usd is None else f"{report.told_cost_usd:f}",
        duration_ms=call.duration_ms,
    )


def _charge(part: HeldPart, report: UsageReport, cost: int | None, missing: MissingUsage) -> int:
    """What one counter is charged; where usage is missing, the agent's policy decides."""
    if part.unit == "in_flight":
        return 0
    amount = _amount(part, report, cost)
    if report.exactness is Exactness.EXACT and amount is not None:
        return amount
    if report.exactness is Exactness.LOWER_BOUND and amount is not None:
        return amount if missing is MissingUsage.OBSERVED else max(amount, part.amount)
    return part.amount


def _amount(part: HeldPart, report: UsageReport, cost: int | None) -> int | None:
    """What the report says in the counter's unit; None: nothing."""
    if part.unit == "requests":
        return 1
    if report.exactness is Exactness.UNKNOWN:
        return None
    return cost if part.unit == "usd" else min(report.tokens, AMOUNT_MAX)
