"""Budgets, and whose they are: agents with their keys, teams, orgs, model patterns."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StringConstraints,
    field_validator,
    model_validator,
)

from extauthz.config.values import (
    Block,
    Name,
    Number,
    Whole,
    usd_to_nano,
)
from extauthz.policies import Unit
from extauthz.windows import ROLLING_LENGTHS_MS, Period, Window

_KEY_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_HEADER_SAFE = re.compile(r"[!#-\[\]-~]+")


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{value!r} is not an IANA time zone, such as Europe/Berlin") from error
    return value


def _header_safe(value: str) -> str:
    if not _HEADER_SAFE.fullmatch(value):  # a budget's id has it, and stands quoted in a header
        raise ValueError("a model is written in printable ASCII, without blanks, quotes and \\")
    return value


def _key_hash(value: str) -> str:
    if not _KEY_HASH.fullmatch(value):
        raise ValueError(
            "write sha256: and the 64 hex digits of the key's SHA-256, never the key itself"
        )
    return value


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}"


Timezone = Annotated[str, AfterValidator(_timezone)]
Estimate = Literal["strict", "fit"]
KeyHash = Annotated[str, AfterValidator(_key_hash)]
ModelGlob = Annotated[
    str,
    StringConstraints(min_length=1, max_length=256, to_lower=True),
    AfterValidator(_header_safe),
]
HeaderGlob = Annotated[
    str, StringConstraints(min_length=1, max_length=256), AfterValidator(_header_safe)
]
ModelName = Annotated[
    str, StringConstraints(min_length=1, max_length=256), AfterValidator(_header_safe)
]
Tokens = Annotated[Whole, Field(ge=1, le=10_000_000)]


class BudgetBlock(Block):
    """A limit in each window."""

    limit: Number
    window: Period
    length: str | None = None
    unit: Unit = Unit.USD
    timezone: Timezone | None = None
    model: ModelGlob | None = None
    estimate: Estimate | None = None
    shadow: StrictBool = False
    id: Name | None = None

    @model_validator(mode="after")
    def _rolling(self) -> Self:
        if self.window is not Period.ROLLING:
            if self.length is not None:
                raise ValueError("length: only a rolling window has one")
        elif self.length not in ROLLING_LENGTHS_MS:
            raise ValueError(f"length: a rolling window's is {_either(ROLLING_LENGTHS_MS)}")
        elif self.timezone is not None:
            raise ValueError("timezone: a rolling window has none, it ends at every moment")
        return self

    @model_validator(mode="after")
    def _countable(self) -> Self:
        try:
            self.limit_in_unit()
        except ValueError as error:
            raise ValueError(f"limit: {error}") from error
        return self

    def window_in(self, timezone: str) -> Window:
        """The window, in a time zone where the block names none."""
        if self.length is not None:
            return Window(self.window, length=self.length)
        return Window(self.window, self.timezone or timezone)

    def limit_in_unit(self) -> int:
        """The limit as the ledger counts it: nano-USD, tokens or requests."""
        if self.unit is Unit.USD:
            return usd_to_nano(self.limit)
        if self.limit != self.limit.to_integral_value() or self.limit > 2**52:
            raise ValueError(f"a number of {self.unit.value} is a whole number below 2^52")
        return int(self.limit)


class ModelsBlock(Block):
    """Which models an agent may use, as globs."""

    allow: tuple[ModelGlob, ...] = ("*",)


class MadeBlock(Block):
    """What an agent gets that is made on first sight of a verified identity."""

    max: Annotated[Whole, Field(ge=1, le=10_000)] = 100
    team: Name | None = None
    max_in_flight: Annotated[Whole, Field(ge=1, le=1_000_000)] | None = None
    default_output_tokens: Tokens | None = None
    models: ModelsBlock = ModelsBlock()
    budgets: tuple[BudgetBlock, ...] = ()

    @field_validator("budgets")
    @classmethod
    def _of_each(cls, budgets: tuple[BudgetBlock, ...]) -> tuple[BudgetBlock, ...]:
        if all(budget.shadow for budget in budgets):
            raise ValueError("give each at least one budget that is no shadow")
        if any(budget.id for budget in budgets):
            raise ValueError("each agent has its own, so none has an 'id'")
        return budgets


class KeyBlock(Block):
    """A virtual key; written as its hash alone where it has no budgets of its own."""

    hash: KeyHash
    budgets: tuple[BudgetBlock, ...] = ()


def _key(value: Any) -> Any:
    return KeyBlock(hash=_key_hash(value)) if isinstance(value, str) else value


class AgentBlock(Block):
    """One agent: who it is, what it may use and spend."""

    team: Name | None = None
    keys: tuple[Annotated[KeyBlock, BeforeValidator(_key)], ...] = ()
    max_in_flight: Annotated[Whole, Field(ge=1, le=1_000_000)] | None = None
    default_output_tokens: Tokens | None = None
    models: ModelsBlock = ModelsBlock()
    budgets: tuple[BudgetBlock, ...] = ()


class GroupBlock(Block):
    """A team, an org or a model pattern: budgets that many agents share."""

    budgets: tuple[BudgetBlock, ...] = ()


class ModelBlock(GroupBlock):
    """A model pattern; what it says of calls without a cap, an agent of its own may say better."""

    default_output_tokens: Tokens | None = None
