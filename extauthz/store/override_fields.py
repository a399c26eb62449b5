"""The hash of an org's overrides: its names and texts, as scripts/prelude.lua describes them."""

import re
from collections.abc import Mapping

from extauthz.ledger import BudgetOverride, Key, Override, Overrides, Part

_PAUSE = "pause:"
_KEY = "key:"
_WORD = re.compile(r"([=+])(\d+)@(\d*)")
_WHOSE = re.compile(r"(\S+)@(\d*) (\d+)")


def field_of(command: Override) -> str:
    """The field that an override changes. No budget's id begins like that of a pause or a key."""
    if command.is_of_key:
        return key_field(command.key_hash)
    return f"{_PAUSE}{command.target}" if command.is_pausing else command.target


def key_field(key_hash: str) -> str:
    """The field of a virtual key."""
    return f"{_KEY}{key_hash}"


def key_of(text: str | None) -> Key | None:
    """What the field of a virtual key says; None where there is none."""
    found = _WHOSE.fullmatch(text or "")
    return Key(found[1], int(found[3]), _until(found[2])) if found else None


def overrides_of(fields: Mapping[str, str], at_ms: int) -> Overrides:
    """What the hash says, as far as it holds at an instant."""
    budgets: dict[str, BudgetOverride] = {}
    pauses: dict[str, int | None] = {}
    keys: dict[str, Key] = {}
    for name, text in fields.items():
        if name.startswith(_PAUSE):
            end = Part(0, _until(text.removeprefix("@")))
            if end.holds(at_ms):
                pauses[name.removeprefix(_PAUSE)] = end.until_ms
        elif name.startswith(_KEY):
            if key := key_of(text):
                keys[name.removeprefix(_KEY)] = key
        elif known := _budget(text).at(at_ms):
            budgets[name] = known
    return Overrides(budgets, pauses, keys)


def fields_of(overrides: Overrides) -> dict[str, str]:
    """The hash that says this."""
    fields = {f"{_PAUSE}{who}": _ending(end) for who, end in overrides.pauses.items()}
    for key_hash, key in overrides.keys.items():
        fields[key_field(key_hash)] = f"{key.whose}{_ending(key.until_ms)} {key.made_at_ms}"
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
