"""A row of the books together with what its particulars say, and which rows somebody wants."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from extauthz.ledger import Row, RowOutcome
from extauthz.pricing import BillLine

BILLED = (
    RowOutcome.SETTLED,
    RowOutcome.LATE,
    RowOutcome.ANOMALY,
    RowOutcome.RECOVERED,
)
"""Rows of calls whose response told (or not) what was used."""

ENDING = (*BILLED, RowOutcome.EXPIRED_UNCONFIRMED, RowOutcome.RELEASED, RowOutcome.ABANDONED)
"""Rows that end a call, or correct how it ended."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row in words. What its particulars do not say is empty."""

    row: Row
    words: Mapping[str, Any]

    @classmethod
    def of(cls, row: Row) -> "Entry":
        """Read a row's particulars; what is no JSON object is read as nothing."""
        try:
            words = json.loads(row.particulars or "{}")
        except ValueError:
            words = {}
        return cls(row, words if isinstance(words, dict) else {})

    def text(self, name: str) -> str:
        """A particular that is a text."""
        word = self.words.get(name)
        return word if isinstance(word, str) else ""

    def number(self, name: str) -> int | None:
        """A particular that is a whole number, which may be written as a string."""
        word = self.words.get(name)
        if isinstance(word, str) and word.isascii() and word.isdecimal():
            return int(word)
        return word if type(word) is int else None

    @property
    def usage(self) -> dict[str, int]:
        """What was used, by kind."""
        found = self.words.get("usage")
        if not isinstance(found, dict):
            return {}
        return {kind: count for kind, count in found.items() if type(count) is int}

    @property
    def bill(self) -> tuple[BillLine, ...]:
        """The rates that were applied; none where nothing was, or before rows told them."""
        found = self.words.get("bill")
        try:
            return tuple(map(BillLine.from_json, found)) if isinstance(found, list) else ()
        except ValueError:
            return ()

    @property
    def called_at_ms(self) -> int:
        """When the call was reserved: the windows of that instant count it, however late it ended.

        A row that is about no call has the instant in which it was written.
        """
        reserved_at_ms = self.number("reserved_at_ms")
        return self.row.at_ms if reserved_at_ms is None else reserved_at_ms


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which rows are wanted: of each list one must fit, and all lists must. Globs are allowed.

    Everything but the outcome is the same for all rows of a call, so that its corrections come with
    it; therefore `model` is the one that was asked for.
    """

    agent: tuple[str, ...] = ()
    team: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    provider: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()
    id: tuple[str, ...] = field(default=())
    """reservation, decision or override"""
    since_ms: int | None = None
    until_ms: int | None = None
    """the first instant that is wanted no more"""

    def wants(self, entry: Entry, at_ms: int) -> bool:
        """Whether an entry fits, as one of the instant `at_ms`."""
        row = entry.row
        return (
            (self.since_ms is None or at_ms >= self.since_ms)
            and (self.until_ms is None or at_ms < self.until_ms)
            and (not self.outcome or row.outcome.value in self.outcome)
            and (not self.id or row.id in self.id or entry.text("decision") in self.id)
            and _fits(self.agent, entry.text("agent"))
            and _fits(self.team, entry.text("team"))
            and _fits(self.key, entry.text("key"))
            and _fits(self.provider, entry.text("provider"))
            and _fits(tuple(map(str.lower, self.model)), entry.text("model").lower())
        )


def _fits(patterns: tuple[str, ...], word: str) -> bool:
    return not patterns or any(fnmatchcase(word, pattern) for pattern in patterns)
