"""Which budgets a call counts on, and what its agent is allowed: the compiled config.

A budget is identified by its org, scope, name, window, unit and model pattern, or by an explicit
id. The limit is no part of the identity: a limit that changes keeps what was spent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

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
    TEAM = "team"
    ORG = "org"


class MissingUsage(StrEnum):
    """What a call is charged whose response did not tell its usage."""

    ESTIMATE = "estimate"
    OBSERVED = "observed"
    """The lower bound that was seen: then the limit is not hard."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on what one agent, team or org may use in each window."""

    org: str
    scope: Scope
    name: str
    window: Window
    unit: Unit
    limit: int
    """nano-USD, tokens or requests"""
    model: str | None = None
    shadow: bool = False
    explicit_id: str | None = None

    @property
    def id(self) -> str:
        """Stable over restarts and changed limits; readable in the store."""
        if self.explicit_id:
            return self.explicit_id
        parts = [self.scope.value, self.name, self.window.period.value, self.unit.value]
        return "/".join(parts + ([self.model] if self.model else []))

    def counts(self, *model_names: str) -> bool:
        """Whether a call to a model, under any name it goes by, counts on this budget."""
        pattern = self.model
        return pattern is None or any(fnmatchcase(n.lower(), pattern) for n in model_names)


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
    default_output_tokens: int | None = None
    hold_wait_ms: int = 1_000
    missing_usage: MissingUsage = MissingUsage.ESTIMATE
    denied_status: int = 429

    def allows(self, model: str) -> bool:
        """Whether the agent may use a model (names are compared without case)."""
        return any(fnmatchcase(model.lower(), pattern) for pattern in self.models_allowed)

    @property
    def has_enforcing_budget(self) -> bool:
        """An agent that nothing limits is refused: shadow budgets limit nothing."""
        return any(not budget.shadow for budget in self.budgets)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A configured provider, as far as the core needs to know it."""

    name: str
    api: str
    price_provider: str
    """the genai-prices id whose list applies"""


@dataclass(frozen=True, slots=True)
class Line:
    """One budget's part in a call: its hold, and what is needed to show it."""

    budget: Budget | None
    """None: the agent's calls in flight, which is a hold and no budget"""
    bounds: Bounds
    hold: Hold


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

    @property
    def memory_ms(self) -> int:
        """How long a counter outlives its window: longest lease + settle horizon."""
        return self.stream_ms_max + self.lease_ms + self.settle_horizon_ms
