"""`identity`: by what agents are known, in the order of the file."""

from collections.abc import Iterator
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, model_validator

from extauthz.config.values import Block, ConfigPath, Name
from extauthz.identity import NamePattern

_AS_IT_IS = NamePattern("*", "{1}")


def _https(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.fragment:
        raise ValueError("write the URL of a JWKS, such as https://issuer.example/keys")
    return value


def _claim(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class AgentNameBlock(Block):
    """Which verified identities go by which agent's name."""

    match: Annotated[str, Field(min_length=1, max_length=1024)]
    agent: Annotated[str, Field(min_length=1, max_length=256)]
    make: StrictBool = False

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.pattern.is_sound():
            raise ValueError("agent: {1} is what the first * of 'match' stands for, and so on")
        if self.match.count("*") > 9:
            raise ValueError("match: at most nine *")
        return self

    @property
    def pattern(self) -> NamePattern:
        """As the core reads it."""
        return NamePattern(self.match, self.agent, self.make)


class _VerifiedBlock(Block):
    """What Envoy verifies; without `agents` an identity is the name of its agent."""

    agents: tuple[AgentNameBlock, ...] = ()

    @property
    def names(self) -> tuple[NamePattern, ...]:
        """As the core reads them."""
        return tuple(block.pattern for block in self.agents) or (_AS_IT_IS,)


class VirtualKeyBlock(Block):
    """Keys: of `agents.*.keys`, and those that `extauthz key` makes."""


class JwtBlock(_VerifiedBlock):
    """A token of one issuer, verified by Envoy's jwt_authn; names as in its configuration."""

    issuer: Annotated[str, Field(min_length=1, max_length=1024)]
    audiences: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    local_jwks: ConfigPath | None = None
    remote_jwks: Annotated[str, AfterValidator(_https)] | None = None
    ca_file: ConfigPath | None = None
    claim: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        BeforeValidator(_claim),
        Field(min_length=1, max_length=8),
    ] = ("sub",)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.local_jwks is None) == (self.remote_jwks is None):
            raise ValueError("name exactly one of 'local_jwks' (a file) and 'remote_jwks' (a URL)")
        if self.ca_file and not (self.remote_jwks or "").startswith("https://"):
            raise ValueError("ca_file: only where remote_jwks is an https URL")
        return self


class MtlsBlock(_VerifiedBlock):
    """A client certificate: then the egress listener speaks TLS, and asks everyone for one."""

    trusted_ca: ConfigPath
    certificate_chain: ConfigPath
    private_key: ConfigPath


class StaticBlock(Block):
    """Whoever reaches the listener is this agent."""

    agent: Name


def _named_alone(value: Any) -> Any:
    return {"virtual_key": {}} if value == "virtual_key" else value


class IdentityBlock(Block):
    """One way in which an agent is known."""

    virtual_key: VirtualKeyBlock | None = None
    jwt: JwtBlock | None = None
    mtls: MtlsBlock | None = None
    static: StaticBlock | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        ways = (self.virtual_key, self.jwt, self.mtls, self.static)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("name exactly one of 'virtual_key', 'jwt', 'mtls' and 'static'")
        return self

    @property
    def verified(self) -> JwtBlock | MtlsBlock | None:
        """That which comes with a verified identity, not with an agent."""
        return self.jwt or self.mtls


Identity = Annotated[
    tuple[Annotated[IdentityBlock, BeforeValidator(_named_alone)], ...], Field(min_length=1)
]


def identity_contradictions(
    blocks: tuple[IdentityBlock, ...], agents: frozenset[str], *, may_make: bool
) -> Iterator[str]:
    """What each entry alone cannot see."""
    for kind in ("virtual_key", "mtls", "static"):
        if sum(getattr(block, kind) is not None for block in blocks) > 1:
            yield f"identity: '{kind}' stands twice"
    issuers = [block.jwt.issuer for block in blocks if block.jwt]
    for issuer in sorted({one for one in issuers if issuers.count(one) > 1}):
        yield f"identity: two entries 'jwt' have the issuer '{issuer}'"
    for index, block in enumerate(blocks):
        path = f"identity[{index}]"
        if block.static and block.static.agent not in agents:
            yield f"{path}.static.agent: there is no agent '{block.static.agent}' under 'agents'"
        if block.static and index + 1 < len(blocks):
            yield f"{path}.static: whoever comes is this agent, so nothing can stand behind it"
        kind = "jwt" if block.jwt else "mtls"
        for at, name in enumerate(block.verified.agents if block.verified else ()):
            of_name = f"{path}.{kind}.agents[{at}]"
            if name.make and not may_make:
                yield f"{of_name}.make: say under 'defaults.agent' what such an agent may spend"
            if not name.make and not name.pattern.is_of_many and name.agent not in agents:
                yield f"{of_name}.agent: there is no agent '{name.agent}' under 'agents'"
