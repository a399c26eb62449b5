"""One structured log line for each decision and each ending, and the metrics beside it.

A line holds amounts, names and reasons; never a prompt, a key or a credential.
"""

import json
import logging
import time
from typing import Any

from extauthz.ledger import Ending, Outcome
from extauthz.metrics import Metrics, usd
from extauthz.money import format_usd
from extauthz.reasons import Decision, Reason
from extauthz.service.reconcile import Reconciled
from extauthz.service.rules import Clock
from extauthz.service.settle import Settlement
from extauthz.service.verdict import Verdict

UNKNOWN = "unknown"

log = logging.getLogger("extauthz.ledger")

_ALARMING = frozenset(
    {Outcome.ANOMALY, Outcome.CONFLICT, Outcome.DEAD_LETTER, Outcome.RECOVERED, Outcome.EXPIRED}
)


class Observer:
    """The `DecisionObserver`, `SettlementObserver` and `EntryObserver` of a running service."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock

    def decided(self, verdict: Verdict, seconds: float) -> None:
        """One Check was answered."""
        provider = verdict.upstream.name if verdict.upstream else UNKNOWN
        # The client's spelling of a model would be a label that a client can multiply.
        model = verdict.priced.info.id if verdict.priced else UNKNOWN
        self._metrics.decided(provider, model, verdict.decision, verdict.reason, seconds)
        if verdict.output_cap is not None and verdict.agent is not None:
            by = "default" if verdict.output_cap == verdict.default_cap else "fit"
            self._metrics.output_capped.labels(verdict.agent.name, by).inc()
        if verdict.reason is Reason.UNKNOWN_AGENT and verdict.status == 429:
            return  # one of a flood: the metrics count it, a line each would cost others
        level = logging.WARNING if verdict.decision is Decision.ERROR else logging.INFO
        if log.isEnabledFor(level):
            _write(
                level,
                event="decision",
                decision=verdict.decision.value,
                reason=verdict.reason.value,
                decision_id=verdict.decision_id,
                reservation_id=verdict.record.reservation_id if verdict.record else None,
                agent=verdict.agent.name if verdict.agent else None,
                provider=provider,
                endpoint=verdict.endpoint or None,
                model=verdict.known_model,
                estimate_usd=format_usd(verdict.estimate.nanousd) if verdict.estimate else None,
                held_usd=format_usd(verdict.record.estimate_nanousd) if verdict.record else None,
                output_cap=verdict.output_cap,
                budgets={
                    line.budget.id: [line.hold.limit, balance.spent, balance.held]
                    for line, balance in zip(verdict.lines, verdict.balances, strict=True)
                    if line.budget is not None
                },
                waited_ms=verdict.waited_ms,
                ms=round(seconds * 1000, 3),
            )

    def cancelled(self) -> None:
        """Nobody waited for a Check's answer."""
        self._metrics.checks_cancelled.inc()

    def settled(self, settlement: Settlement) -> None:
        """One call has ended."""
        metrics, outcome = self._metrics, settlement.outcome
        record = settlement.call.record
        metrics.settlements.labels(outcome.value).inc()
        lag_ms = max(0, self._clock() - settlement.call.ended_at_ms)
        if outcome in (Outcome.SETTLED, Outcome.RELEASED):
            metrics.settlement_lag_seconds.observe(lag_ms / 1000)
        if outcome in (Outcome.SETTLED, Outcome.LATE, Outcome.ANOMALY, Outcome.RECOVERED):
            metrics.spent_usd.labels(record.agent, record.provider, settlement.priced_model).inc(
                usd(settlement.cost_nanousd)
            )
            metrics.overshoot_usd.inc(usd(settlement.overshoot_nanousd))
        alarming = outcome in _ALARMING or settlement.overshoot_nanousd > 0
        _write(
            logging.WARNING if alarming else logging.INFO,
            event="settlement",
            outcome=outcome.value,
            reservation_id=record.reservation_id,
            decision_id=record.decision_id,
            agent=record.agent,
            provider=record.provider,
            model=record.model,
            endpoint=record.endpoint,
            price_version=settlement.price_version,
            served_model=settlement.report.served_model,
            usage=dict(settlement.report.amounts),
            exactness=settlement.report.exactness.value,
            status=settlement.call.status,
            estimate_usd=format_usd(record.estimate_nanousd),
            cost_usd=format_usd(settlement.cost_nanousd),
            overshoot_usd=format_usd(settlement.overshoot_nanousd),
            lag_ms=lag_ms,
        )

    def expired(self, ending: Ending) -> None:
        """A lease ran out and was charged; nothing has confirmed that the call cost so much."""
        self._metrics.expired_unconfirmed.inc()
        self._metrics.settlements.labels(ending.outcome.value).inc()
        _write(
            logging.WARNING,
            event="settlement",
            outcome=ending.outcome.value,
            reservation_id=ending.id,
            charged=list(ending.charged),
        )

    def reconciled(self, result: Reconciled, unreadable: int) -> None:
        """Some lines of the file access log were gone through."""
        self._metrics.reconciled.inc(result.settled)
        self._metrics.reconcile_unreadable.inc(unreadable)

    def unreadable_entry(self) -> None:
        """An access-log entry cannot be settled."""
        self._metrics.unreadable_entries.inc()


_written = json.JSONEncoder(separators=(",", ":")).encode


def _write(level: int, **fields: Any) -> None:
    log.log(level, _written(fields))


class JsonFormatter(logging.Formatter):
    """Every record is one JSON line; those of this module already are, but for time and level."""

    converter = staticmethod(time.gmtime)  # times in UTC
    _second = 0
    _second_text = ""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        if int(record.created) != self._second:
            self._second = int(record.created)
            self._second_text = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        at = self._second_text
        head = f'{{"time":"{at}.{int(record.msecs):03d}Z","level":"{record.levelname.lower()}"'
        message = record.getMessage()
        if record.name == log.name:
            return f"{head},{message[1:]}"
        fields: dict[str, str] = {"logger": record.name, "message": message}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return f"{head},{json.dumps(fields)[1:]}"
