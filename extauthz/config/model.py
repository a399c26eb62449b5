"""The config file as it is written: one class a block, every name is the contract.

An unknown key is an error, and so is a name of the contract that is not built yet: a setting that
is read and does nothing would be worse.
"""

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
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

from extauthz.config.identity import Identity, IdentityBlock, VirtualKeyBlock
from extauthz.config.values import (
    Address,
    Block,
    ConfigPath,
    DurationMs,
    DurationMsAboveZero,
    ListenAddress,
    Name,
    Number,
    Price,
    Whole,
    usd_to_nano,
)
from extauthz.identity import short_name
from extauthz.ledger import SHARE_WHOLE
from extauthz.policies import MissingUsage, Scope, Unit
from extauthz.providers import ADAPTERS
from extauthz.providers.client_headers import ALLOWABLE
from extauthz.store.base import StoreError
from extauthz.store.url import StoreUrl
from extauthz.windows import ROLLING_LENGTHS_MS, Period, Window

_KEY_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_ENDPOINT_PATH = re.compile(r"(/([A-Za-z0-9._:@-]*[A-Za-z0-9_:@-]|\*))+")
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


_HOST_NAME = re.compile(r"(?=.*[a-z])([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}")
_HEADER_SAFE = re.compile(r"[!#-\[\]-~]+")


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{value!r} is not an IANA time zone, such as Europe/Berlin") from error
    return value


def _share(value: Decimal) -> Decimal:
    if not 0 < value <= 1 or value * SHARE_WHOLE % 1:
        raise ValueError("a share is above 0 and at most 1, with three decimal places at most")
    return value


def _deny_only(value: str) -> str:
    if value == "allow":
        raise ValueError("'allow' is not built yet: leave it out, or write deny")
    return value


def _upstream(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port above 65535, a bracket without its other half
        usable = False
    if not usable:
        raise ValueError("write the provider's URL, such as https://api.openai.com")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("an upstream URL has no query, fragment or credential")
    return value


def _own_host(upstream: str) -> tuple[str, ...]:
    """The host of an https URL, where it has a name and the port that SDKs would use."""
    parts = urlsplit(upstream)
    host = parts.hostname or ""
    usable = parts.scheme == "https" and parts.port in (None, 443) and _HOST_NAME.fullmatch(host)
    return (host,) if usable else ()


def _header_safe(value: str) -> str:
    if not _HEADER_SAFE.fullmatch(value):  # a budget's id has it, and stands quoted in a header
        raise ValueError("a model is written in printable ASCII, without blanks, quotes and \\")
    return value


def _api(value: str) -> str:
    if value not in ADAPTERS:
        raise ValueError(f"{value!r} is not an API that can be metered: {', '.join(ADAPTERS)}")
    return value


def _endpoint_path(value: str) -> str:
    if not _ENDPOINT_PATH.fullmatch(value):
        raise ValueError(
            "write the provider's own path, such as /v1/audio/transcriptions; "
            "* stands for one part of it"
        )
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


def _variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        raise ValueError("write the name of an environment variable, such as OPENAI_API_KEY")
    return value


def _region(value: str) -> str:
    if not _REGION.fullmatch(value):
        raise ValueError("write an AWS region, such as us-east-1")
    return value


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


def _host_name(value: str) -> str:
    if not _HOST_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no host name in lower case, such as api.openai.com")
    return value


HostName = Annotated[str, StringConstraints(max_length=253), AfterValidator(_host_name)]


class InterceptBlock(Block):
    """Transparent interception: TLS of the providers' own host names is terminated here."""

    listen: ListenAddress
    ca: ConfigPath | None = None
    hosts: dict[Name, tuple[HostName, ...]] = Field(default_factory=dict)


class SecretBlock(Block):
    """Where a secret stands: never in this file."""

    env: Annotated[str, AfterValidator(_variable)] | None = None
    file: ConfigPath | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("name exactly one of 'env' and 'file'")
        return self


class CredentialBlock(Block):
    """Where Envoy, and only Envoy, finds the provider's key; or that it signs, and for where."""

    env: Annotated[str, AfterValidator(_variable)] | None = None
    file: ConfigPath | None = None
    aws_region: Annotated[str, AfterValidator(_region)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.env, self.file, self.aws_region].count(None) != 2:
            raise ValueError("name exactly one of 'env', 'file' and (for AWS) 'aws_region'")
        return self


class EndpointBlock(Block):
    """An endpoint that is not metered, allowed at a fixed price for each call."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: Annotated[str, AfterValidator(_endpoint_path)]
    price_usd: Number

    @field_validator("price_usd")
    @classmethod
    def _countable(cls, value: Decimal) -> Decimal:
        usd_to_nano(value)
        return value


class ProviderBlock(Block):
    """An upstream API. Without a credential the agent's key is removed and none is added."""

    api: Annotated[str, AfterValidator(_api)]
    upstream: Annotated[str, AfterValidator(_upstream)]
    credential: CredentialBlock | None = None
    ca_file: ConfigPath | None = None
    deployments: dict[str, ModelName] = Field(default_factory=dict)
    endpoints: tuple[EndpointBlock, ...] = ()
    allow_headers: dict[str, tuple[HeaderGlob, ...]] = Field(default_factory=dict)
    budgets: "tuple[BudgetBlock, ...]" = ()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        adapter = ADAPTERS[self.api]
        if self.credential and self.credential.aws_region and self.api != "bedrock":
            raise ValueError("credential: aws_region: only for api bedrock")
        if self.deployments and not adapter.names_deployments:
            raise ValueError(f"deployments: calls of api {self.api} name models, leave it out")
        unknown = [name for name in self.allow_headers if name not in ALLOWABLE]
        if unknown:
            raise ValueError(
                f"allow_headers: {', '.join(unknown)}: what can be allowed is "
                f"{', '.join(ALLOWABLE)}, in lower case"
            )
        seen = set()
        for endpoint in self.endpoints:
            name = f"{endpoint.method} {endpoint.path}"
            if adapter.serves(endpoint.method, endpoint.path):
                raise ValueError(f"endpoints: {name} is metered, so it has no fixed price")
            if name in seen:
                raise ValueError(f"endpoints: {name} stands twice")
            seen.add(name)
        return self


class PriceBlock(Block):
    """A price that the public list lacks or has wrong, in USD per million tokens."""

    provider: Name
    model: ModelGlob
    input: Price
    output: Price | None = None
    cache_read: Price | None = None
    cache_write: Price | None = None
    cache_write_1h: Price | None = None
    context_window: Tokens | None = None
    max_output_tokens: Tokens | None = None
    fallback: StrictBool = False


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
    agent: "MadeBlock | None" = None

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        if self.lease < 10_000:
            raise ValueError("lease: at least 10s, open streams renew it every quarter")
        if self.hold_wait > 10_000:
            raise ValueError("hold_wait: at most 10s")
        return self


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
            for host in self.intercept.hosts.get(name, _own_host(provider.upstream))
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
