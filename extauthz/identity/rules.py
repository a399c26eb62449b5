"""The ways in which an agent is known, and how a verified identity becomes an agent's name.

What a token or a certificate says has been verified by Envoy: Check hears of it in metadata that no
client can write. Here it is only read, and mapped to a name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_AGENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_PART = r"([^/:]*)"
_PLACE = re.compile(r"\{([1-9])\}")


@dataclass(frozen=True)
class NamePattern:
    """Which identities go by which agent's name.

    Attributes:
        match: an identity; each `*` in it stands for one part, without / and :
        agent: an agent's name; `{1}` in it is what the first `*` stands for, and so on.
        make: whether an agent that the config does not know may be made, under `defaults.agent`.
    """

    match: str
    agent: str
    make: bool = False

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        return re.compile(_PART.join(map(re.escape, self.match.split("*"))))

    def agent_of(self, identity: str) -> str | None:
        """The name of its agent; None if it has none by this pattern."""
        found = self._expression.fullmatch(identity)
        if found is None:
            return None
        name = _PLACE.sub(lambda place: found[int(place[1])], self.agent)
        return name if _AGENT.fullmatch(name) else None

    def is_sound(self) -> bool:
        """Whether every place in the agent's name has its `*`."""
        stars = self.match.count("*")
        return all(int(place) <= stars for place in _PLACE.findall(self.agent))

    @property
    def is_of_many(self) -> bool:
        """Whether the agent's name depends on the identity."""
        return bool(_PLACE.search(self.agent))


@dataclass(frozen=True, slots=True)
class KeyRule:
    """By a virtual key: of the config file, or of those that the ledger keeps."""


@dataclass(frozen=True, slots=True)
class TokenRule:
    """By a JWT that Envoy has verified.

    Attributes:
        issuer: the name of its verified payload in Envoy's metadata.
        claim: the path to the claim that says who it is.
        names: the first that matches counts.
    """

    issuer: str
    claim: tuple[str, ...]
    names: tuple[NamePattern, ...]

    def identity_in(self, payloads: Mapping[str, Mapping[str, Any]]) -> str | None:
        """What the claim says; None without a verified token, or if it is no text."""
        value: Any = payloads.get(self.issuer)
        for word in self.claim:
            value = value.get(word) if isinstance(value, Mapping) else None
        return value if isinstance(value, str) and value else None


@dataclass(frozen=True, slots=True)
class CertificateRule:
    """By the URI or DNS name in a client certificate that Envoy has verified."""

    names: tuple[NamePattern, ...]

    @staticmethod
    def identity_in(principal: str) -> str | None:
        """The name; None for a certificate without one: then Envoy tells its whole subject."""
        return principal if principal and not re.search(r"[=,\s]", principal) else None


@dataclass(frozen=True, slots=True)
class StaticRule:
    """Whoever reaches the listener: for a sidecar with one agent."""

    agent: str


Rule = KeyRule | TokenRule | CertificateRule | StaticRule


def verified_name(names: Sequence[NamePattern], identity: str) -> tuple[str, bool] | None:
    """The agent of a verified identity, and whether it may be made; None if it has none."""
    for pattern in names:
        agent = pattern.agent_of(identity)
        if agent is not None:
            return agent, pattern.make
    return None
