"""Who asks: the first way in the configured order by which the caller is known.

A way that finds nothing of its kind is passed over. One that finds a virtual key of this product
which admits nobody refuses: a revoked key must not come in by what stands behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from extauthz.identity import (
    CertificateRule,
    CredentialError,
    KeyRule,
    NamePattern,
    NoCredentialError,
    StaticRule,
    TokenRule,
    hash_key,
    is_made_key,
    read_credential,
    verified_name,
)
from extauthz.policies import Agent
from extauthz.reasons import Reason
from extauthz.service.denied import Denied
from extauthz.service.key_ring import KeyRing, TooManyStrangersError
from extauthz.service.rules import Clock, Rules
from extauthz.store.base import StoreError

_NO_SUCH_KEY = "this virtual key is not known: ask for the agent's key"
_NOT_VERIFIED = (
    "this token was not accepted: it has expired, or is of another issuer, for another audience, "
    "or signed by a key that is not known"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        agent: under whose policy.
        key_hash: the virtual key by which it is known; "" where it is known by something else.
        is_stored: whether the ledger keeps the key, so that a reserve has to check it.
    """

    agent: Agent
    key_hash: str = ""
    is_stored: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What tells who asks.

    Attributes:
        headers: as the client wrote them: only a virtual key is read from them.
        payloads: of the tokens that Envoy has verified, by issuer.
        principal: of the client certificate that Envoy has verified.
        certificate_ends_at_ms: the end of that certificate, which its connection can outlive.
    """

    headers: Mapping[str, str]
    payloads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    principal: str = ""
    certificate_ends_at_ms: int | None = None


class Identifier:
    """Finds the agent of a call."""

    def __init__(self, rules: Rules, key_ring: KeyRing, clock: Clock) -> None:
        self._rules = rules
        self._keys = key_ring
        self._clock = clock

    async def identify(self, evidence: Evidence, *, anew: bool) -> Caller:
        """Who asks; `anew` where no reserve will check a key of the ledger.

        Raises:
            Denied: nobody that is known, or the store cannot say.
        """
        refusals: list[str] = []
        for rule in self._rules.policies.identity:
            match rule:
                case KeyRule():
                    caller = await self._by_key(evidence.headers, refusals, anew=anew)
                case TokenRule():
                    found = rule.identity_in(evidence.payloads)
                    caller = self._by_name(rule.names, found, "token", refusals)
                case CertificateRule():
                    self._must_hold(evidence.certificate_ends_at_ms)
                    found = rule.identity_in(evidence.principal)
                    caller = self._by_name(rule.names, found, "client certificate", refusals)
                case StaticRule(agent=name):
                    caller = Caller(self._rules.policies.agents[name])
            if caller is not None:
                return caller
        raise _unknown(refusals[0] if refusals else "nothing tells which agent this is")

    async def _by_key(
        self, headers: Mapping[str, str], refusals: list[str], *, anew: bool
    ) -> Caller | None:
        try:
            key = read_credential(headers)
        except NoCredentialError as error:
            refusals.append(str(error))
            return None
        except CredentialError as error:
            raise _unknown(str(error)) from None
        key_hash = hash_key(key)
        agent = self._rules.policies.agent_by_key_hash.get(key_hash)
        if agent is not None:
            return Caller(agent, key_hash)
        if not is_made_key(key):
            refusals.append(_NOT_VERIFIED if _is_token(key) else _NO_SUCH_KEY)
            return None
        return await self._by_stored_key(key_hash, anew=anew)

    async def _by_stored_key(self, key_hash: str, *, anew: bool) -> Caller:
        (org,) = self._rules.policies.orgs
        try:
            key = await self._keys.find(org, key_hash, anew=anew)
        except TooManyStrangersError:
            raise Denied(
                Reason.UNKNOWN_AGENT,
                429,
                "too many virtual keys that were never seen are being asked about: try again",
            ) from None
        except StoreError as error:
            raise Denied(
                Reason.STORE_UNAVAILABLE,
                503,
                "the budget store does not say whose this virtual key is, so no call is let "
                "through: try again shortly",
            ) from error
        if key is None:
            raise _unknown("this virtual key is not known, or was revoked: ask for another")
        if not key.holds(self._clock()):
            self._keys.forget(key_hash)  # its end may have been moved
            raise _unknown("this virtual key has expired: ask for another")
        agent = self._rules.policies.agents.get(key.agent)
        if agent is None:
            raise _unknown(f"the agent '{key.agent}' of this virtual key is not configured")
        return Caller(agent, key_hash, is_stored=True)

    def _must_hold(self, certificate_ends_at_ms: int | None) -> None:
        if certificate_ends_at_ms is not None and certificate_ends_at_ms < self._clock():
            raise _unknown("this client certificate has expired: connect anew with another")

    def gone(self, key_hash: str) -> Denied:
        """What to answer when the store says that a key admits nobody any longer."""
        self._keys.forget(key_hash)
        return _unknown("this virtual key was revoked, or has expired: ask for another")

    def _by_name(
        self, names: tuple[NamePattern, ...], identity: str | None, what: str, refusals: list[str]
    ) -> Caller | None:
        if identity is None:
            return None
        named = verified_name(names, identity)
        if named is None:
            refusals.insert(0, f"no agent goes by the name in this {what}")
            return None
        name, may_be_made = named
        agent = self._rules.policies.agents.get(name)
        if agent is None and may_be_made:
            agent = self._rules.make_agent(name)
            if agent is None:
                raise _unknown("as many agents as may be are made already: defaults.agent.max")
        if agent is None:
            raise _unknown(f"the agent '{name}' of this {what} is not configured")
        return Caller(agent)


def _is_token(key: str) -> bool:
    """Whether a text looks like a JWT: one that is verified has been taken off the request."""
    return key.startswith("eyJ") and key.count(".") == 2


def _unknown(message: str) -> Denied:
    return Denied(Reason.UNKNOWN_AGENT, 401, message)
