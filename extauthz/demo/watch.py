"""Reading the product from outside: its admin listener, its log, and Envoy's access log."""

import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extauthz.demo.stage import Stage
from extauthz.money import parse_usd

NO_KEY = "(no key)"

_TIMEOUT_SECONDS = 5.0

_CHARGED = ("settled", "late", "recovered", "anomaly")
"""Outcomes with which a settlement changes what is spent; a duplicate, say, does not."""


@dataclass(slots=True)
class Standing:
    """One agent as the product tells it so far. Amounts in nano-USD."""

    limit: int | None = None
    spent: int = 0
    held: int = 0
    peak: int = 0
    bill: int = 0
    admitted: int = 0
    denied: Counter[str] = field(default_factory=Counter)
    settled: list[int] = field(default_factory=list)
    smallest_refused: int | None = None


class Watcher:
    """Keeps the standing of every agent; `look` brings it up to date."""

    def __init__(self, stage: Stage, names: list[str]) -> None:
        self._stage = stage
        self._log = _Tail(stage.log)
        self.standing = {name: Standing() for name in names}
        self.open_reservations = 0
        self.samples = 0

    def look(self) -> None:
        """One sample: what everybody has spent and holds, and what was decided since the last.

        Raises:
            OSError: the admin listener did not answer.
        """
        self._read_budgets()
        self._read_log()

    def look_at_bill(self) -> None:
        """What the provider wants so far."""
        by_agent = self._stage.sandbox.bill(after=2**62)["by_agent"]
        for name, standing in self.standing.items():
            standing.bill = int(by_agent.get(name, {}).get("total_nanousd", 0))

    def is_settled(self) -> bool:
        """Whether no reservation is open and each one's ending stands in the log."""
        self.look()
        return self.open_reservations == 0

    def read_log(self) -> None:
        """What the log has gained; complete once the sidecar has stopped."""
        self._read_log()

    def _read_budgets(self) -> None:
        request = urllib.request.Request(  # noqa: S310 - http on loopback
            f"{self._stage.admin}/v1/budgets",
            headers={"authorization": f"Bearer {self._stage.admin_token}"},
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
            answer = json.load(response)
        self.open_reservations = answer["open_reservations"]
        for budget in answer["budgets"]:
            standing = self.standing[budget["name"]]
            standing.limit = parse_usd(budget["limit"])
            standing.spent, standing.held = parse_usd(budget["spent"]), parse_usd(budget["held"])
            standing.peak = max(standing.peak, standing.spent + standing.held)
        self.samples += 1

    def _read_log(self) -> None:
        for line in self._log.lines():
            if line.get("event") == "decision":
                self._decided(line)
            elif line.get("outcome") in _CHARGED and line.get("exactness") == "exact":
                self.standing[line["agent"]].settled.append(parse_usd(line["cost_usd"]))

    def _decided(self, line: dict[str, Any]) -> None:
        standing = self.standing[line["agent"] or NO_KEY]
        if line["decision"] in ("allow", "shadow_deny"):
            standing.admitted += 1
            return
        standing.denied[line["reason"]] += 1
        if line["reason"] == "budget_exhausted":
            estimate = parse_usd(line["estimate_usd"])
            known = standing.smallest_refused
            standing.smallest_refused = estimate if known is None else min(known, estimate)


def egress_requests(stage: Stage) -> int:
    """How many requests agents sent through Envoy, which may have been more than their calls."""
    ends = (line for line in _Tail(stage.access_log).lines() if line["type"] == "DownstreamEnd")
    return sum(1 for _ in ends)


def billed(stage: Stage, name: str) -> tuple[list[int], list[int]]:
    """The provider's bill for one agent: calls that it delivered in full, and the others."""
    lines = [line for line in stage.sandbox.bill()["lines"] if line["agent"] == name]
    whole = [int(line["cost_nanousd"]) for line in lines if line["completed"]]
    cut = [int(line["cost_nanousd"]) for line in lines if not line["completed"]]
    return whole, cut


class _Tail:
    """The JSON lines that a growing file has gained since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the rest is still being written
                self._offset += len(line)
                if line.startswith(b"{"):
                    yield json.loads(line)
