"""The metrics contract.

Every label is bounded: agents, budgets and providers come from the config, models from the price
lists, everything else from closed lists.

Amounts are floats in USD here and nowhere else: Prometheus knows nothing but floats.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from extauthz import __version__
from extauthz.ledger import Balance, Outcome
from extauthz.money import NANOUSD_PER_USD
from extauthz.policies import Budget, Scope, Unit
from extauthz.reasons import Decision, Reason

_CHECK_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_LAG_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def usd(nanousd: int) -> float:
    """For display only."""
    return nanousd / NANOUSD_PER_USD


@dataclass(slots=True, eq=False)  # a registry wants it hashable
class BudgetGauges(Collector):
    """The budgets as read from the store at this scrape; None while the store is away."""

    standing: Sequence[tuple[Budget, Balance]] | None = None
    open_reservations: int | None = None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Current windows only; every configured budget is present from the start."""
        yield from self._of_unit(Unit.USD, "usd", usd)
        yield from self._of_unit(Unit.TOKENS, "tokens", float)
        yield from self._of_unit(Unit.REQUESTS, "requests", float)
        if self.open_reservations is not None:
            yield GaugeMetricFamily(
                "extauthz_reservations_open",
                "Reservations that have not ended.",
                value=self.open_reservations,
            )

    def _of_unit(
        self, unit: Unit, suffix: str, shown: Callable[[int], float]
    ) -> Iterable[GaugeMetricFamily]:
        standing = [pair for pair in self.standing or () if pair[0].unit is unit]
        if not standing and unit is not Unit.USD:
            return
        families = {
            what: GaugeMetricFamily(f"extauthz_budget_{what}_{suffix}", text)
            for what, text in (
                ("limit", f"Limit of the current window, in {suffix}."),
                ("spent", f"Settled in the current window, in {suffix}."),
                ("held", f"Held by calls in flight, in {suffix}."),
            )
        }
        for budget, balance in standing:
            labels = _budget_labels(budget)
            for what, amount in (
                ("limit", budget.limit),
                ("spent", balance.spent),
                ("held", balance.held),
            ):
                families[what].add_sample(families[what].name, labels, shown(amount))
        yield from families.values()


def _budget_labels(budget: Budget) -> dict[str, str]:
    """Scope, name and window; what else tells two budgets apart only where it is set."""
    labels = {
        "scope": budget.scope.value,
        "name": budget.name,
        "window": budget.window.name,
    }
    if budget.model and budget.scope is not Scope.MODEL:  # there it is the name
        labels["model"] = budget.model
    if budget.explicit_id:
        labels["id"] = budget.explicit_id
    return labels


class Metrics:
    """All metrics of one process, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.budgets = BudgetGauges()
        self.registry.register(self.budgets)
        self.checks = Counter(
            "extauthz_checks_total",
            "Decisions of Check.",
            ("provider", "model", "decision", "reason"),
            registry=self.registry,
        )
        self._checks_by: dict[tuple[str, ...], Counter] = {}
        """(to look a counter up by its labels takes longer than to count)"""
        self.check_seconds = Histogram(
            "extauthz_check_duration_seconds",
            "Time from request to answer of a Check, waiting for held room included.",
            buckets=_CHECK_SECONDS,
            registry=self.registry,
        )
        self.checks_cancelled = Counter(
            "extauthz_checks_cancelled_total",
            "Checks whose answer nobody waited for: the client left, or Envoy's deadline passed.",
            registry=self.registry,
        )
        self.output_capped = Counter(
            "extauthz_output_capped_total",
            "Calls into which an output cap was written: the default of a call that names none, or "
            "what the room that is left pays for (fit).",
            ("agent", "by"),
            registry=self.registry,
        )
        self.settlements = Counter(
            "extauthz_settlements_total",
            "Endings of reservations.",
            ("outcome",),
            registry=self.registry,
        )
        for outcome in Outcome:
            self.settlements.labels(outcome.value)
        self.settlement_lag_seconds = Histogram(
            "extauthz_settlement_lag_seconds",
            "Time from the end of a call to its settlement.",
            buckets=_LAG_SECONDS,
            registry=self.registry,
        )
        self.spent_usd = Counter(
            "extauthz_spent_usd_total",
            "Settled cost. What an expired lease charged is in extauthz_budget_spent_usd only.",
            ("agent", "provider", "model"),
            registry=self.registry,
        )
        self.overshoot_usd = Counter(
            "extauthz_overshoot_usd_total",
            "Settled cost above what was reserved for the call.",
            registry=self.registry,
        )
        self.unreadable_entries = Counter(
            "extauthz_access_log_unreadable_total",
            "Access-log entries whose metadata is no call record.",
            registry=self.registry,
        )
        self.spool_depth = Gauge(
            "extauthz_spool_depth",
            "Access-log entries on disk that the store has not taken yet.",
            registry=self.registry,
        )
        self.reconciled = Counter(
            "extauthz_reconciled_total",
            "Calls that the gRPC access log lost, ended by what the file access log says of them.",
            registry=self.registry,
        )
        self.reconcile_unreadable = Counter(
            "extauthz_reconcile_unreadable_total",
            "Lines of the file access log that cannot be read.",
            registry=self.registry,
        )
        self.reconcile_lag_seconds = Gauge(
            "extauthz_reconcile_lag_seconds",
            "Time since the file access log was last gone through.",
            registry=self.registry,
        )
        self.expired_unconfirmed = Counter(
            "extauthz_expired_unconfirmed_total",
            "Reservations that were charged because nothing told how their call ended.",
            registry=self.registry,
        )
        self.books_unsealed_rows = Gauge(
            "extauthz_books_unsealed_rows",
            "Rows of the books that are in the store only, and not archived yet.",
            ("org",),
            registry=self.registry,
        )
        self.books_sealed_seq = Gauge(
            "extauthz_books_sealed_seq",
            "The last row that is archived.",
            ("org",),
            registry=self.registry,
        )
        self.books_archiving = Gauge(
            "extauthz_books_archiving",
            "1 if this service archives the org's rows; 0 if another one does, or none can.",
            ("org",),
            registry=self.registry,
        )
        self.ledger_drift_usd = Gauge(
            "extauthz_ledger_drift_usd",
            "By how much counters differ from what the books say, all added up, at the last audit.",
            ("org",),
            registry=self.registry,
        )
        self.ledger_audit_findings = Gauge(
            "extauthz_ledger_audit_findings",
            "Counters that the last audit found to differ, in any unit, and faults in the books.",
            ("org",),
            registry=self.registry,
        )
        self.ledger_audited_seconds = Gauge(
            "extauthz_ledger_audited_timestamp_seconds",
            "When the last audit ended.",
            ("org",),
            registry=self.registry,
        )
        self.primary_changes = Gauge(
            "extauthz_store_primary_changes_total",
            "Times the store's primary was another one: acknowledged writes may have been lost.",
            registry=self.registry,
        )
        self.reload_successful = Gauge(
            "extauthz_config_last_reload_successful",
            "1 if the config in force is the one in the file.",
            registry=self.registry,
        )
        build = Gauge("extauthz_build_info", "Always 1.", ("version",), registry=self.registry)
        build.labels(__version__).set(1)

    def decided(
        self, provider: str, model: str, decision: Decision, reason: Reason, seconds: float
    ) -> None:
        """One Check was answered. `provider` and `model` must come from bounded lists."""
        labels = (provider, model, decision.value, reason.value)
        checks = self._checks_by.get(labels)
        if checks is None:
            checks = self._checks_by[labels] = self.checks.labels(*labels)
        checks.inc()
        self.check_seconds.observe(seconds)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
