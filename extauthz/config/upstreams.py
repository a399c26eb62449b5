"""The providers: where they are, how Envoy signs in, what their calls cost."""

import re
from decimal import Decimal
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    StrictBool,
    StringConstraints,
    field_validator,
    model_validator,
)

from extauthz.config.budgets import BudgetBlock, HeaderGlob, ModelGlob, ModelName, Tokens
from extauthz.config.values import (
    Block,
    ConfigPath,
    ListenAddress,
    Name,
    Number,
    Price,
    Whole,
    usd_to_nano,
)
from extauthz.providers import ADAPTERS
from extauthz.providers.client_headers import ALLOWABLE

_ENDPOINT_PATH = re.compile(r"(/([A-Za-z0-9._:@-]*[A-Za-z0-9_:@-]|\*))+")
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST_NAME = re.compile(r"(?=.*[a-z])([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}")


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


def own_host(upstream: str) -> tuple[str, ...]:
    """The host of an https URL, where it has a name and the port that SDKs would use."""
    parts = urlsplit(upstream)
    host = parts.hostname or ""
    usable = parts.scheme == "https" and parts.port in (None, 443) and _HOST_NAME.fullmatch(host)
    return (host,) if usable else ()


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


def _variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        raise ValueError("write the name of an environment variable, such as OPENAI_API_KEY")
    return value


def _region(value: str) -> str:
    if not _REGION.fullmatch(value):
        raise ValueError("write an AWS region, such as us-east-1")
    return value


def _host_name(value: str) -> str:
    if not _HOST_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no host name in lower case, such as api.openai.com")
    return value


HostName = Annotated[str, StringConstraints(max_length=253), AfterValidator(_host_name)]


Seconds = Annotated[Whole, Field(ge=1, le=1_000_000)]
"""Of one sound."""


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
    max_audio_seconds: Seconds | None = None
    budgets: tuple[BudgetBlock, ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        adapter = ADAPTERS[self.api]
        if self.credential and self.credential.aws_region and self.api != "bedrock":
            raise ValueError("credential: aws_region: only for api bedrock")
        if self.deployments and not adapter.names_deployments:
            raise ValueError(f"deployments: calls of api {self.api} name models, leave it out")
        if self.max_audio_seconds is not None and not adapter.bills_audio_seconds:
            raise ValueError(
                f"max_audio_seconds: nothing of api {self.api} is billed by the second: "
                "leave it out"
            )
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
