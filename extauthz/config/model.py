"""The config file as it is written: one class a block, every name is the contract.

An unknown key is an error, and so is a name of the contract that is not built yet: a setting that
is read and does nothing would be worse.
"""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    field_validator,
    model_validator,
)

from extauthz.config.budgets import (
    AgentBlock,
    BudgetBlock,
    Estimate,
    GroupBlock,
    MadeBlock,
    ModelBlock,
    ModelGlob,
    Timezone,
    Tokens,
)
from extauthz.config.identity import Identity, IdentityBlock, VirtualKeyBlock
from extauthz.config.upstreams import (
    InterceptBlock,
    PriceBlock,
    ProviderBlock,
    SecretBlock,
    own_host,
)
from extauthz.config.values import (
    Address,
    Block,
    ConfigPath,
    DurationMs,
    DurationMsAboveZero,
    ListenAddress,
    Name,
    Number,
    Whole,
)
from extauthz.identity import short_name
from extauthz.ledger import SHARE_WHOLE
from extauthz.policies import MissingUsage, Scope
from extauthz.store.base import StoreError
from extauthz.store.url import StoreUrl


def _share(value: Decimal) -> Decimal:
    if not 0 < value <= 1 or value * SHARE_WHOLE % 1:
        raise ValueError("a share is above 0 and at most 1, with three decimal places at most")
    return value


def _deny_only(value: str) -> str:
    if value == "allow":
        raise ValueError("'allow' is not built yet: leave it out, or write deny")
    return value


class StoreBlock(Block):
    """Where the ledger lives; without `url` an embedded Valkey in `data_dir`."""

    url: str | None = None
    wait_replicas: Annotated[Whole, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.wait_replicas and not self.url:
            raise ValueError("wait_replicas: the embedded store has none, leave it out or set url")
        if self.url:
            try:
                StoreUrl.parse(self.url)
            except StoreError as error:
                raise ValueError(str(error).removeprefix("store.")) from error
        return self


class ListenBlock(Block):
    """The TCP addresses; Check, the sink and the embedded store use unix sockets in `data_dir`."""

    egress: ListenAddress = Address("127.0.0.1", 10000)
    metrics: ListenAddress = Address("127.0.0.1", 9464)
    admin: ListenAddress = Address("127.0.0.1", 9465)


class BooksBlock(Block):
    """The archive of the books; with a key, only who has it can write a line that fits."""

    key: SecretBlock | None = None
    audit_every: DurationMs = 300_000
    """0: never"""


class TimeoutsBlock(Block):
    """How long things may last."""

    max_stream_duration: DurationMsAboveZero = 3_600_000
    stream_idle_timeout: DurationMsAboveZero = 600_000
    drain: DurationMs = 30_000


class DefaultsBlock(Block):
    """What holds where an agent or budget says nothing else."""

    org: Name = "default"
    timezone: Timezone = "UTC"
    estimate: Estimate = "fit"
    default_output_tokens: Tokens | None = None
    min_output_tokens: Tokens = 256
    comfort_output_tokens: Tokens = 4_096
    max_share: Annotated[Number, AfterValidator(_share)] = Decimal("0.25")
    hold_wait: DurationMs = 1_000
    missing_usage: MissingUsage = MissingUsage.ESTIMATE
    failure_mode: Annotated[Literal["deny", "allow"], AfterValidator(_deny_only)] = "deny"
    denied_status: Literal[402, 403, 429] = 429
    lease: DurationMs = 900_000
    settle_horizon: DurationMsAboveZero = 604_800_000
    agent: MadeBlock | None = None

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        if self.lease < 10_000:
            raise ValueError("lease: at least 10s, open streams renew it every quarter")
        if self.hold_wait > 10_000:
            raise ValueError("hold_wait: at most 10s")
        return self


class Config(Block):
    """The whole file."""

    store: StoreBlock = StoreBlock()
    data_dir: ConfigPath = Field(default=Path("./.extauthz"), validate_default=True)
    listen: ListenBlock = ListenBlock()
    intercept: InterceptBlock | None = None
    providers: dict[Name, ProviderBlock] = Field(default_factory=dict)
    prices: tuple[PriceBlock, ...] = ()
    identity: Identity = (IdentityBlock(virtual_key=VirtualKeyBlock()),)
    books: BooksBlock = BooksBlock()
    timeouts: TimeoutsBlock = TimeoutsBlock()
    defaults: DefaultsBlock = DefaultsBlock()
    agents: dict[Name, AgentBlock] = Field(default_factory=dict)
    teams: dict[Name, GroupBlock] = Field(default_factory=dict)
    orgs: dict[Name, GroupBlock] = Field(default_factory=dict)
    models: dict[ModelGlob, ModelBlock] = Field(default_factory=dict)

    @field_validator("models", mode="before")
    @classmethod
    def _patterns_differ(cls, data: Any) -> Any:
        lower = [str(name).lower() for name in data] if isinstance(data, dict) else []
        twice = sorted({name for name in lower if lower.count(name) > 1})
        if twice:
            raise ValueError(f"case makes no difference, and these stand twice: {', '.join(twice)}")
        return data

    def intercepted_hosts(self) -> list[tuple[str, str]]:
        """Host names to intercept, each with its provider; those of the upstreams by default."""
        if self.intercept is None:
            return []
        return [
            (host, name)
            for name, provider in self.providers.items()
            for host in self.intercept.hosts.get(name, own_host(provider.upstream))
        ]

    def budget_blocks(self) -> Iterator[tuple[str, Scope, str, tuple[BudgetBlock, ...]]]:
        """All budgets with their path, scope and name."""
        for name, agent in self.agents.items():
            yield f"agents.{name}", Scope.AGENT, name, agent.budgets
            for index, key in enumerate(agent.keys):
                path = f"agents.{name}.keys[{index}]"
                yield path, Scope.KEY, short_name(key.hash), key.budgets
        if self.defaults.agent is not None:
            yield "defaults.agent", Scope.AGENT, "", self.defaults.agent.budgets
        groups = ((Scope.TEAM, self.teams), (Scope.ORG, self.orgs), (Scope.MODEL, self.models))
        for scope, blocks in groups:
            for name, block in blocks.items():
                yield f"{scope.value}s.{name}", scope, name, block.budgets
        for name, provider in self.providers.items():
            yield f"providers.{name}", Scope.PROVIDER, name, provider.budgets
