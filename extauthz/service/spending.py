"""Rows summed up: what was spent by whom, on what, on which day. Whole nano-USD, never a float."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from extauthz.ledger import RowOutcome
from extauthz.service.entries import BILLED, Entry

DIMENSIONS = ("agent", "team", "model", "provider", "key", "day")

_FIRST_CHARGE = (
    RowOutcome.SETTLED,
    RowOutcome.EXPIRED_UNCONFIRMED,
    RowOutcome.RECOVERED,
    RowOutcome.ANOMALY,
)
"""Rows with which a call begins to cost something; a `late` one corrects a call that did."""


@dataclass(slots=True)
class Spent:
    """What a group of calls did cost.

    Attributes:
        calls: those that were charged, each once, even if it turned out to have cost nothing.
        input_tokens: as far as responses told; cached ones included.
        output_tokens: as far as responses told; reasoning included.
        nanousd: all of it, with what is unconfirmed.
        unconfirmed_calls: those that their lease has charged and nothing has confirmed since.
        unconfirmed_nanousd: what these were charged.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    nanousd: int = 0
    unconfirmed_calls: int = 0
    unconfirmed_nanousd: int = 0

    def add(self, other: "Spent") -> None:
        """Add another group's calls."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))


@dataclass(slots=True)
class Spending:
    """Adds up entries by one dimension; every row of a call counts where its first one does."""

    group_of: Callable[[Entry], str]
    groups: dict[str, Spent] = field(default_factory=dict)
    unconfirmed: dict[str, tuple[str, int]] = field(default_factory=dict)
    """the group and the charge of calls that nothing has confirmed yet, by id"""

    @classmethod
    def by(cls, dimension: str, timezone: str) -> "Spending":
        """Sums by one of `DIMENSIONS`; days are those of a time zone."""
        if dimension != "day":
            return cls(lambda entry: entry.text(dimension))
        zone = ZoneInfo(timezone)
        return cls(lambda entry: _day(entry.called_at_ms, zone))

    def add(self, entry: Entry) -> None:
        """Add one row; those that are about no call's cost add nothing."""
        row = entry.row
        is_first = row.outcome in _FIRST_CHARGE
        if not is_first and not row.change_nanousd and row.outcome not in BILLED:
            return
        name = self.group_of(entry)
        group = self.groups.setdefault(name, Spent())
        group.calls += is_first
        group.nanousd += row.change_nanousd
        if row.outcome in BILLED:
            group.input_tokens += entry.usage.get("input_tokens", 0)
            group.output_tokens += entry.usage.get("output_tokens", 0)
        if row.outcome is RowOutcome.EXPIRED_UNCONFIRMED:
            self.unconfirmed[row.id] = name, row.cost_nanousd
        elif row.outcome is RowOutcome.LATE:
            self.unconfirmed.pop(row.id, None)

    def result(self) -> dict[str, Spent]:
        """Every group, by the rows that were added so far."""
        groups = {name: replace(group) for name, group in self.groups.items()}
        for name, nanousd in self.unconfirmed.values():
            groups[name].unconfirmed_calls += 1
            groups[name].unconfirmed_nanousd += nanousd
        return groups


def total_of(groups: dict[str, Spent]) -> Spent:
    """All groups together."""
    total = Spent()
    for group in groups.values():
        total.add(group)
    return total


def _day(at_ms: int, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone).date().isoformat()
