"""The hash of an org's overrides: its names and texts, as scripts/prelude.lua describes them."""

import re
from collections.abc import Mapping

from extauthz.ledger import BudgetOverride, Override, Overrides, Part

_PAUSE = "pause:"
_WORD = re.compile(r"([=+])(\d+)@(\d*)")


def field_of(command: Override) -> str:
    """The field that an override changes. No budget's id begins like that of a pause."""
    return f"{_PAUSE}{command.target}" if command.is_pausing else command.target


def overrides_of(fields: Mapping[str, str], at_ms: int) -> Overrides:
    """What the hash says, as far as it holds at an instant."""
    budgets: dict[str, BudgetOverride] = {}
    pauses: dict[str, int | None] = {}
    for name, text in fields.items():
        if name.startswith(_PAUSE):
            end = Part(0, _until(text.removeprefix("@")))
            if end.holds(at_ms):
                pauses[name.removeprefix(_PAUSE)] = end.until_ms
        elif known := _budget(text).at(at_ms):
            budgets[name] = known
    return Overrides(budgets, pauses)


def fields_of(overrides: Overrides) -> dict[str, str]:
    """The hash that says this."""
    fields = {f"{_PAUSE}{who}": _ending(end) for who, end in overrides.pauses.items()}
    for budget_id, found in overrides.budgets.items():
        words = [f"={part.amount}{_ending(part.until_ms)}" for part in found.limits]
        words += [f"+{part.amount}{_ending(part.until_ms)}" for part in found.top_ups]
        fields[budget_id] = " ".join(words)
    return fields


def _ending(until_ms: int | None) -> str:
    return "@" if until_ms is None else f"@{until_ms}"


def _budget(text: str) -> BudgetOverride:
    limits: list[Part] = []
    top_ups: list[Part] = []
    for sign, amount, until_ms in _WORD.findall(text):
        part = Part(int(amount), _until(until_ms))
        (limits if sign == "=" else top_ups).append(part)
    return BudgetOverride(tuple(limits), tuple(top_ups))


def _until(text: str) -> int | None:
    return int(text) if text else None
