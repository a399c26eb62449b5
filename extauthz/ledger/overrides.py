"""What an operator changes while calls go on: limits, top-ups, pauses and keys, in the ledger.

A reserve reads them in the same atomic step in which it decides, so an override takes effect at the
next one, for every process on the store. An override is applied once: its id is remembered with
what it said, and a repeat of it changes nothing.

Precedence: the limit that was set last replaces that of the config file while it holds (until its
end, or until it is unset). One that was set before and ends later waits behind it, and is in force
again afterwards; one that ends no later is forgotten, so a limit without an end replaces them all.
So the limits of a budget lie in the order of their ends, and the one that ends next is in force.

Top-ups that hold are added to whichever limit is in force. To set a limit ends those that were made
before: who sets 0 wants nothing spent. The sum is at most `AMOUNT_MAX`. Of two pauses of one target
the longer one holds, in whatever order they come, until it is resumed. Of a key, what was said last
holds: it is admitted for an agent until an end, or revoked, which forgets it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from extauthz.ledger.keys import Key, check_key_change
from extauthz.money import AMOUNT_MAX

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_PAUSE_TARGET = re.compile(r"(agent|team):[!-z|~]+")

LIMITS_MAX = 8
"""So many limits of one budget are kept; of more, those that would come next are forgotten."""


class Change(StrEnum):
    """What an override does."""

    SET = "set"
    """another limit, without the top-ups up to now"""
    TOP_UP = "top-up"
    """more, on top of the limit in force"""
    UNSET = "unset"
    """the limit of the file again, without top-ups"""
    PAUSE = "pause"
    RESUME = "resume"
    ADMIT = "admit"
    """a virtual key comes in as an agent, up to an end; the same again: another end"""
    REVOKE = "revoke"
    """a virtual key comes in no longer"""


class Applied(StrEnum):
    """What became of an override."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    """its id has been here before, saying the same: nothing was changed"""
    CONFLICT = "conflict"
    """its id has been here before, saying something else: nothing was changed"""


@dataclass(frozen=True, slots=True)
class Part:
    """An amount that holds up to an instant; for good without one."""

    amount: int
    until_ms: int | None = None

    def holds(self, at_ms: int) -> bool:
        """Whether it is in force."""
        return is_before(at_ms, self.until_ms)


@dataclass(frozen=True, slots=True)
class BudgetOverride:
    """What is changed of one budget. The limits lie in the order of their ends."""

    limits: tuple[Part, ...] = ()
    top_ups: tuple[Part, ...] = ()

    def limit_in_force(self, limit: int, at_ms: int) -> int:
        """What applies instead of the file's limit."""
        base = next((part.amount for part in self.limits if part.holds(at_ms)), limit)
        more = sum(part.amount for part in self.top_ups if part.holds(at_ms))
        return min(base + more, AMOUNT_MAX)

    def at(self, at_ms: int) -> "BudgetOverride | None":
        """What of it holds at an instant, or will when what ends before has ended."""
        limits = tuple(part for part in self.limits if part.holds(at_ms))
        top_ups = tuple(part for part in self.top_ups if part.holds(at_ms))
        return BudgetOverride(limits, top_ups) if limits or top_ups else None

    def limited_to(self, part: Part) -> "BudgetOverride":
        """With another limit, which is in force until its end, and without top-ups."""
        behind = [old for old in self.limits if ends_after(old.until_ms, part.until_ms)]
        too_many = max(0, 1 + len(behind) - LIMITS_MAX)
        return BudgetOverride((part, *behind[too_many:]))

    def topped_up(self, part: Part) -> "BudgetOverride":
        """With one more; those that end together are one."""
        same = sum(old.amount for old in self.top_ups if old.until_ms == part.until_ms)
        others = tuple(old for old in self.top_ups if old.until_ms != part.until_ms)
        amount = min(same + part.amount, AMOUNT_MAX)
        return BudgetOverride(self.limits, (*others, Part(amount, part.until_ms)))


@dataclass(frozen=True, slots=True)
class Overrides:
    """All that holds in an org at an instant."""

    budgets: Mapping[str, BudgetOverride] = field(default_factory=dict)
    """by the budget's id"""
    pauses: Mapping[str, int | None] = field(default_factory=dict)
    """when each ends, by `agent:NAME` or `team:NAME`"""
    keys: Mapping[str, Key] = field(default_factory=dict)
    """by hash; those that have ended too, until they are revoked"""

    def limit_in_force(self, budget_id: str | None, limit: int, at_ms: int) -> int:
        """What applies to a budget instead of the file's limit."""
        found = self.budgets.get(budget_id or "")
        return limit if found is None else found.limit_in_force(limit, at_ms)


@dataclass(frozen=True, slots=True)
class Override:
    """One change by an operator.

    Attributes:
        id: by which a repeat is known.
        target: a budget's id; `agent:NAME` or `team:NAME` for pause and resume; `agent:NAME`, whose
            the key is, for admit and revoke.
        amount: the limit, or what is added to it, in the budget's unit.
        until_ms: when it ends by itself.
        forget_at_ms: when the id may be forgotten.
        note: who changed it and why, for the books.
    """

    id: str
    org: str
    at_ms: int
    change: Change
    target: str
    forget_at_ms: int
    amount: int = 0
    until_ms: int | None = None
    note: str = ""
    key_hash: str = ""
    """which key, for admit and revoke: never the key itself"""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"{self.id!r} is no id: write letters, digits and . _ @ -")
        if not 0 <= self.amount <= AMOUNT_MAX:
            raise ValueError(f"{self.target}: an amount is not within 0 and {AMOUNT_MAX}")
        if self.is_pausing and not _PAUSE_TARGET.fullmatch(self.target):
            raise ValueError(f"{self.target!r} is neither 'agent:NAME' nor 'team:NAME'")
        if self.is_of_key:
            check_key_change(self.key_hash, self.target)

    @property
    def is_pausing(self) -> bool:
        """Whether it is about an agent or a team, not about a budget."""
        return self.change in (Change.PAUSE, Change.RESUME)

    @property
    def is_of_key(self) -> bool:
        """Whether it is about a virtual key."""
        return self.change in (Change.ADMIT, Change.REVOKE)

    @property
    def content(self) -> str:
        """What the id is remembered with. A top-up ends with its window, whenever it is sent."""
        words = [self.change.value, self.target]
        if self.change in (Change.SET, Change.TOP_UP):
            words.append(str(self.amount))
        if self.is_of_key:
            words.append(self.key_hash)
        if self.change in (Change.SET, Change.PAUSE, Change.ADMIT):
            words.append("" if self.until_ms is None else str(self.until_ms))
        return " ".join(words)

    @property
    def particulars(self) -> str:
        """What the books say of it: one JSON object."""
        words: dict[str, str] = {"change": self.change.value, "target": self.target}
        if self.change in (Change.SET, Change.TOP_UP):
            words["amount"] = str(self.amount)
        if self.is_of_key:
            words["key"] = self.key_hash
        if self.until_ms is not None:
            words["until_ms"] = str(self.until_ms)
        if self.note:
            words["note"] = self.note
        return json.dumps(words, separators=(",", ":"))


def is_before(at_ms: int, until_ms: int | None) -> bool:
    """Whether an end (None: there is none) is still to come."""
    return until_ms is None or at_ms < until_ms


def ends_after(one: int | None, other: int | None) -> bool:
    """Whether an end (None: there is none) comes after another."""
    return other is not None and (one is None or one > other)


def lasts_longest(ends: list[int | None]) -> int | None:
    """The last of several ends."""
    known = [end for end in ends if end is not None]
    return None if len(known) < len(ends) else max(known)


@dataclass(slots=True)
class OverrideBook:
    """The specification of how overrides are kept; a part of `Ledger`."""

    budgets: dict[str, BudgetOverride] = field(default_factory=dict)
    pauses: dict[str, int | None] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    ids: dict[str, tuple[str, int]] = field(default_factory=dict)
    """what each said, and when to forget it"""

    def apply(self, command: Override) -> Applied:
        """Carry it out, unless its id was here before."""
        if command.id in self.ids:
            same = self.ids[command.id][0] == command.content
            return Applied.DUPLICATE if same else Applied.CONFLICT
        self.ids[command.id] = (command.content, command.forget_at_ms)
        if command.is_pausing:
            before = self.pauses.pop(command.target, command.until_ms)
            if command.change is Change.PAUSE:  # only a resume lets anybody in earlier
                self.pauses[command.target] = lasts_longest([before, command.until_ms])
            return Applied.APPLIED
        if command.is_of_key:
            known = self.keys.pop(command.key_hash, None)
            if command.change is Change.ADMIT:
                made_at_ms = known.made_at_ms if known else command.at_ms
                self.keys[command.key_hash] = Key(command.target, made_at_ms, command.until_ms)
            return Applied.APPLIED
        old = self.budgets.pop(command.target, BudgetOverride())
        old = old.at(command.at_ms) or BudgetOverride()
        part = Part(command.amount, command.until_ms)
        if command.change is Change.SET:
            self.budgets[command.target] = old.limited_to(part)
        if command.change is Change.TOP_UP:
            self.budgets[command.target] = old.topped_up(part)
        return Applied.APPLIED

    def at(self, at_ms: int) -> Overrides:
        """What holds at an instant."""
        pauses = {who: end for who, end in self.pauses.items() if is_before(at_ms, end)}
        budgets = ((id_, found.at(at_ms)) for id_, found in self.budgets.items())
        in_force = {id_: found for id_, found in budgets if found is not None}
        return Overrides(in_force, pauses, dict(self.keys))

    def forget(self, at_ms: int) -> None:
        """Drop the ids that no repeat is expected of any more."""
        for id_ in [known for known, (_, end) in self.ids.items() if end <= at_ms]:
            del self.ids[id_]
