"""Which budgets a call counts on, and what its agent is allowed: the compiled config.

A budget is identified by its org, scope, name, window, unit and model pattern, or by an explicit
id. The limit is no part of the identity: a limit that changes keeps what was spent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from typing import NamedTuple

from extauthz.identity import KeyRule, Rule
from extauthz.ledger import Hold
from extauthz.windows import Bounds, Window


class Unit(StrEnum):
    """What a budget counts."""

    USD = "usd"
    TOKENS = "tokens"
    REQUESTS = "requests"


class Scope(StrEnum):
    """Whose calls a budget counts."""

    AGENT = "agent"
    KEY = "key"
    """one virtual key of an agent, named by the first digits of its hash"""
    TEAM = "team"
    ORG = "org"
    PROVIDER = "provider"
    MODEL = "model"
    """a model pattern, whoever calls"""

    @property
    def covers(self) -> bool:
        """Whether a budget of this scope is one that an agent has.

        What a provider or a model may cost limits all agents together; it lets nobody in.
        """
        return self not in (Scope.PROVIDER, Scope.MODEL)


class MissingUsage(StrEnum):
    """What a call is charged whose response did not tell its usage."""

    ESTIMATE = "estimate"
    OBSERVED = "observed"
    """The lower bound that was seen: then the limit is not hard."""


@dataclass(frozen=True)  # without slots, for the id that is kept
class Budget:
    """A limit on what an agent, a key, a team and so on may use in each window."""

    org: str
    scope: Scope
    name: str
    window: Window
    unit: Unit
    limit: int
    """nano-USD, tokens or requests"""
    model: str | None = None
    fit: bool = False
    """whether a call's output may be capped to fit it; else it needs room for the worst case"""
    shadow: bool = False
    explicit_id: str | None = None

    @cached_property
    def id(self) -> str:
        """Stable over restarts and changed limits; readable in the store."""
        if self.explicit_id:
            return self.explicit_id
        parts = [self.scope.value, self.name, self.window.name, self.unit.value]
        # (the pattern of a budget for a model is its name)
        return "/".join(parts + ([self.model] if self.model and self.model != self.name else []))

    @property
    def place(self) -> tuple[str | None, ...]:
        """Whose and what it counts, whatever its window: where one budget replaces another."""
        return (self.org, self.scope, self.name, self.unit, self.model, self.explicit_id)

    def counts(self, *model_names: str) -> bool:
        """Whether a call to a model, under any name it goes by, counts on this budget."""
        pattern = self.model
        return pattern is None or any(fnmatchcase(n.lower(), pattern) for n in model_names)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A budget as it was before its window or time zone was changed, in force until then."""

    budget: Budget
    until_ms: int


@dataclass(frozen=True, slots=True)
class OutputCaps:
    """What an agent's calls are capped to, in output tokens of one answer."""

    default: int | None = None
    """of its own, for calls that name no cap"""
    default_of_models: tuple[tuple[str, int], ...] = ()
    """where it has none: by model pattern, the first that matches counts"""
    default_of_all: int | None = None
    least: int = 256
    """what is of use: with room for less than this, and what it may think, a call is refused"""
    comfort: int = 4_096
    """it is not capped below this for the sake of other calls"""
    share_permille: int = 250
    """of the room that is left, what one call gets where that is more than comfort"""

    def default_for(self, *model_names: str) -> int | None:
        """The cap of a call that names none, to a model under any name it goes by."""
        of_model = (
            tokens
            for pattern, tokens in self.default_of_models
            if any(fnmatchcase(name.lower(), pattern) for name in model_names)
        )
        return self.default or next(of_model, self.default_of_all)


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent's policy."""

    name: str
    org: str
    team: str | None
    budgets: tuple[Budget, ...]
    """its own, its team's and its org's"""
    models_allowed: tuple[str, ...] = ("*",)
    max_in_flight: int | None = None
    output_caps: OutputCaps = OutputCaps()
    hold_wait_ms: int = 1_000
    missing_usage: MissingUsage = MissingUsage.ESTIMATE
    denied_status: int = 429

    @property
    def pausable_as(self) -> tuple[str, ...]:
        """Whose pause stops this agent."""
        of_team = () if self.team is None else (f"team:{self.team}",)
        return (f"agent:{self.name}", *of_team)

    def allows(self, model: str) -> bool:
        """Whether the agent may use a model (names are compared without case)."""
        return any(fnmatchcase(model.lower(), pattern) for pattern in self.models_allowed)


FIXED_PRICE = "fixed_price"
"""What an endpoint is called, in the record of a call, that has a price by the call."""


@dataclass(frozen=True, slots=True)
class FixedPrice:
    """An endpoint that is not metered but allowed, at a price for each call, in nano-USD.

    In `path`, a `*` stands for one part. It is also what stands for the model in allow lists.
    """

    method: str
    path: str
    nanousd: int

    def is_of(self, method: str, path: str) -> bool:
        """Whether this is the price of such a call."""
        parts, given = self.path.split("/"), path.split("/")
        return (
            method == self.method
            and len(parts) == len(given)
            and all(
                part in ("*", one) and one for part, one in zip(parts[1:], given[1:], strict=True)
            )
        )


@dataclass(frozen=True, slots=True)
class Upstream:
    """A configured provider, as far as the core needs to know it."""

    name: str
    api: str
    price_provider: str
    """the genai-prices id whose list applies"""
    deployments: Mapping[str, str] = field(default_factory=dict)
    """the model behind each name that calls may use instead of it"""
    fixed_prices: tuple[FixedPrice, ...] = ()
    allowed_headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """globs of values, by header"""
    price_context: Mapping[str, str] = field(default_factory=dict)
    """what its URL says about the price of every call"""
    max_audio_seconds: int | None = None
    """of a sound whose model is billed by the second; None: such calls are refused"""

    def fixed_price(self, method: str, path: str) -> FixedPrice | None:
        """The price of a call to an endpoint that the config has one for."""
        return next((price for price in self.fixed_prices if price.is_of(method, path)), None)


class Line(NamedTuple):
    """One budget's part in a call: its hold, and what is needed to show it."""

    budget: Budget | None
    """None: the agent's calls in flight, which is a hold and no budget"""
    bounds: Bounds
    hold: Hold


@dataclass(frozen=True, slots=True)
class Template:
    """What an agent gets that is made on first sight of a verified identity.

    Attributes:
        agent: everything but its name.
        count_max: so many may be made; each is a series in the metrics.
    """

    agent: Agent
    count_max: int

    def named(self, name: str) -> Agent:
        """An agent of this kind, with budgets of its own."""
        budgets = tuple(
            replace(budget, name=name) if budget.scope is Scope.AGENT else budget
            for budget in self.agent.budgets
        )
        return replace(self.agent, name=name, budgets=budgets)


@dataclass(frozen=True, slots=True)
class Policies:
    """Everything a decision needs to know, replaced as a whole on reload."""

    agents: Mapping[str, Agent]
    agent_by_key_hash: Mapping[str, Agent]
    upstreams: Mapping[str, Upstream]
    budgets: tuple[Budget, ...]
    """every configured one, whether or not an agent counts on it"""
    lease_ms: int
    settle_horizon_ms: int
    stream_ms_max: int
    """the longest a stream may stay open, and so a lease be renewed"""
    orgs: tuple[str, ...] = field(default=("default",))
    teams: frozenset[str] = frozenset()
    budgets_of_key: Mapping[str, tuple[Budget, ...]] = field(default_factory=dict)
    """by the key's hash"""
    budgets_of_provider: Mapping[str, tuple[Budget, ...]] = field(default_factory=dict)
    budgets_of_models: tuple[Budget, ...] = ()
    outgoing: tuple[Outgoing, ...] = ()
    former_orgs: tuple[str, ...] = ()
    """whose reservations may be open still"""
    identity: tuple[Rule, ...] = (KeyRule(),)
    """by what agents are known, in this order"""
    template: Template | None = None
    made: tuple[str, ...] = ()
    """the agents that were made on first sight"""

    def with_made(self, name: str) -> "Policies":
        """With an agent that is made, unless it is there or there are as many as there may be."""
        template = self.template
        if template is None or name in self.agents or len(self.made) >= template.count_max:
            return self
        agent = template.named(name)
        own = tuple(budget for budget in agent.budgets if budget.scope is Scope.AGENT)
        return replace(
            self,
            agents={**self.agents, name: agent},
            budgets=(*self.budgets, *own),
            made=(*self.made, name),
        )

    @property
    def all_orgs(self) -> tuple[str, ...]:
        """Every org that may have open reservations."""
        return (*self.orgs, *self.former_orgs)

    def budgets_for(
        self, agent: Agent, key_hash: str, provider: str, models: Sequence[str]
    ) -> tuple[Budget, ...]:
        """Every budget that a call counts on. The model may go by several names."""
        candidates = (
            *agent.budgets,
            *self.budgets_of_key.get(key_hash, ()),
            *self.budgets_of_provider.get(provider, ()),
            *self.budgets_of_models,
        )
        return tuple(budget for budget in candidates if budget.counts(*models))

    def has_budget(self, agent: Agent, key_hash: str) -> bool:
        """Whether anything limits an agent that comes with this key."""
        of_key = self.budgets_of_key.get(key_hash, ())
        return any(not budget.shadow for budget in (*agent.budgets, *of_key))

    @property
    def memory_ms(self) -> int:
        """How long a counter outlives its window: longest lease + settle horizon."""
        return self.stream_ms_max + self.lease_ms + self.settle_horizon_ms
