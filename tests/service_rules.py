"""Policies, a clock and calls for the unit tests of the service."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from extauthz.identity import hash_key
from extauthz.ledger import Release
from extauthz.policies import Agent, Budget, FixedPrice, Policies, Scope, Unit, Upstream
from extauthz.pricing import OwnPrice, PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import Request, RequestFacts
from extauthz.service.authorize import Authorizer
from extauthz.service.identify import Identifier
from extauthz.service.key_ring import KeyRing
from extauthz.service.reserving import Reserving
from extauthz.service.rules import Rules
from extauthz.service.settle import Settlement
from extauthz.service.verdict import CallAttributes
from extauthz.service.waiting import HeldRoom
from extauthz.store.base import LedgerStore
from extauthz.store.memory import MemoryStore
from extauthz.windows import Period, Window

KEY = "xa_key"
DOLLAR = 10**9
PRICE = Decimal(1_000_000)
"""USD per million tokens: one token is one dollar."""


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_790_000_000_000

    def __call__(self) -> int:
        return self.now


def budget(limit: int, **fields: object) -> Budget:
    settings: dict = {
        "org": "default", "scope": Scope.AGENT, "name": "bot", "window": Window(Period.DAY),
        "unit": Unit.USD,
    }  # fmt: skip
    settings |= fields
    factor = DOLLAR if settings["unit"] is Unit.USD else 1
    return Budget(limit=limit * factor, **settings)


def agent(*budgets: Budget, **fields: object) -> Agent:
    settings: dict = {"name": "bot", "org": "default", "team": None, "hold_wait_ms": 0} | fields
    return Agent(budgets=budgets, **settings)


def rules(who: Agent) -> Rules:
    """One agent; models `small` and `large` with one dollar a token in and out."""
    return Rules(
        Policies(
            agents={who.name: who},
            agent_by_key_hash={hash_key(KEY): who},
            upstreams={
                "openai": Upstream("openai", "openai", "openai"),
                "anthropic": Upstream("anthropic", "anthropic", "anthropic"),
                "router": Upstream("router", "openrouter", "openrouter"),
                "azure": Upstream("azure", "azure", "azure", deployments={"mine": "small"}),
                "hearing": Upstream("hearing", "openai", "openai", max_audio_seconds=600),
                "open": Upstream(
                    "open",
                    "openai",
                    "openai",
                    fixed_prices=(FixedPrice("POST", "/v1/files/*", 3 * DOLLAR),),
                    allowed_headers={
                        "openai-project": ("proj_*",),
                        "anthropic-beta": ("context-1m-*",),
                    },
                ),
            },
            budgets=who.budgets,
            lease_ms=900_000,
            settle_horizon_ms=86_400_000,
            stream_ms_max=3_600_000,
        ),
        PriceBook(
            [
                OwnPrice(provider, model, Decimal(0), PRICE)
                for provider in ("openai", "anthropic", "azure", "open", "router")
                for model in ("small", "large")
            ]
        ),
    )


class InlineReader:
    """Reads at once; counts what it read."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def read(self, api: str, endpoint: str, request: Request, *, caller: str) -> RequestFacts:
        assert caller
        self.bodies.append(request.body)
        return ADAPTERS[api].read_request(endpoint, request)


@dataclass
class Seen:
    """Remembers what was settled."""

    settlements: list[Settlement] = field(default_factory=list)

    def settled(self, settlement: Settlement) -> None:
        self.settlements.append(settlement)


@dataclass
class Abandoned:
    """Remembers what is to be given back."""

    commands: list[Release] = field(default_factory=list)

    def abandon(self, command: Release) -> None:
        self.commands.append(command)


@dataclass
class Desk:
    """An authorizer with all it works with."""

    authorizer: Authorizer
    clock: Clock
    abandoned: Abandoned
    reader: InlineReader
    room: HeldRoom
    memory: MemoryStore

    @classmethod
    def of(cls, who: Agent, store: LedgerStore | None = None) -> "Desk":
        clock, abandoned, reader, room = Clock(), Abandoned(), InlineReader(), HeldRoom()
        memory = MemoryStore(clock)
        in_force = rules(who)
        identifier = Identifier(in_force, KeyRing(store or memory), clock)
        reserving = Reserving(in_force, store or memory, identifier, room, abandoned, clock)
        authorizer = Authorizer(in_force, identifier, reader, reserving, clock)
        return cls(authorizer, clock, abandoned, reader, room, memory)


def call(
    dollars: int = 1, *, headers: Mapping[str, str] | None = None, **fields: object
) -> CallAttributes:
    """A call that can cost so many dollars."""
    sent = {"model": "small", "max_tokens": dollars, "messages": []}
    attributes = CallAttributes(
        provider="openai",
        method="POST",
        path="/v1/chat/completions",
        query="",
        headers={"authorization": f"Bearer {KEY}"} if headers is None else headers,
        body=json.dumps(sent | dict(fields.pop("sent", {}))).encode(),  # type: ignore[call-overload]
        request_id="r-1",
    )
    return replace(attributes, **fields)  # type: ignore[arg-type]


async def until(condition, turns: int = 10_000) -> None:
    """Let other coroutines run until something is so."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never was so")
