"""The store commands of a call, as the product itself makes them from a request and its answer.

One call goes through the real `Authorizer` and `Settler` for each org, and what these ask of the
store is kept. Every further call is the same with another id and time: so what is measured of a
store cannot drift from what the product asks of it, and costs the load no more than it must.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from bench.check_request import check_request
from bench.product import KEY, three_budgets
from extauthz.config import policies_of, prices_of
from extauthz.config.load import parse
from extauthz.ids import uuid7
from extauthz.ledger import Ending, Release, Reserve, ReserveAnswer, Settle
from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Request, RequestFacts
from extauthz.service.authorize import Authorizer
from extauthz.service.completed_call import CompletedCall
from extauthz.service.identify import Identifier
from extauthz.service.key_ring import KeyRing
from extauthz.service.reserving import Reserving
from extauthz.service.rules import Clock, Rules, system_clock
from extauthz.service.settle import Settlement, Settler
from extauthz.service.waiting import HeldRoom
from extauthz.servicers.translate import call_attributes
from extauthz.store.memory import MemoryStore

_ANSWER = CapturedResponse(
    usage='{"prompt_tokens":212,"completion_tokens":180,"total_tokens":392,'
    '"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0}}',
    model='"gpt-4o-mini-2024-07-18"',
    complete=True,
)


def rules_of(org: str) -> Rules:
    """Three budgets a call, none of which is ever reached, in an org of this name."""
    changes = three_budgets()
    changes["orgs"] = {org: changes["orgs"]["default"]}
    document = {
        "providers": {
            "openai": {
                "api": "openai",
                "upstream": "http://127.0.0.1:1",
                "credential": {"env": "BENCH_CREDENTIAL"},
            }
        },
        "defaults": {"org": org},
        **changes,
    }
    config = parse(yaml.safe_dump(document), source="bench", base=Path())
    return Rules(policies_of(config), prices_of(config))


@dataclass(frozen=True, slots=True)
class OneCall:
    """What one call of an org asks of the store."""

    first_reserve: Reserve
    first_settle: Settle

    @classmethod
    async def of(cls, rules: Rules) -> "OneCall":
        """Let the product decide and settle one."""
        store, room = _Remembering(system_clock), HeldRoom()
        identifier = Identifier(rules, KeyRing(store), system_clock)
        reserving = Reserving(rules, store, identifier, room, _Nobody(), system_clock)
        authorizer = Authorizer(rules, identifier, _Reader(), reserving, system_clock)
        verdict = await authorizer.authorize(call_attributes(check_request(KEY)))
        assert verdict.record is not None, verdict
        now_ms = system_clock()
        call = CompletedCall(
            verdict.record,
            _ANSWER,
            status=200,
            via_upstream=True,
            left=True,
            refused=False,
            periodic=False,
            ended_at_ms=now_ms,
            duration_ms=2_000,
        )
        await Settler(rules, store, room, system_clock, _Nobody()).settle([call])
        return cls(store.reserves[0], store.settles[0])

    def reserve(self, lease_ms: int | None = None, counters: int | None = None) -> Reserve:
        """Another one now. `counters`: with counters of its own, which this number names."""
        first, at_ms = self.first_reserve, system_clock()
        later_ms = at_ms - first.at_ms
        lease_ms = first.lease_until_ms - first.at_ms if lease_ms is None else lease_ms
        holds = first.holds
        if counters is not None:
            holds = tuple(hold._replace(key=f"{hold.key}{counters:08}") for hold in holds)
        return replace(
            first,
            id=uuid7(at_ms),
            at_ms=at_ms,
            lease_until_ms=at_ms + lease_ms,
            remember_until_ms=first.remember_until_ms + later_ms,
            holds=holds,
        )

    def settle(self, id_: str) -> Settle:
        """The end of one of them, now."""
        at_ms = system_clock()
        return replace(self.first_settle, id=id_, at_ms=at_ms, reserved_at_ms=at_ms)


class _Remembering(MemoryStore):
    """Keeps what it was asked."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.reserves: list[Reserve] = []
        self.settles: list[Settle] = []

    async def reserve(self, command: Reserve) -> ReserveAnswer:
        self.reserves.append(command)
        return await super().reserve(command)

    async def settle_many(self, commands: Sequence[Settle]) -> list[Ending | Exception]:
        self.settles += commands
        return await super().settle_many(commands)


class _Reader:
    """Reads a small body at once."""

    async def read(self, api: str, endpoint: str, request: Request, *, caller: str) -> RequestFacts:
        return ADAPTERS[api].read_request(endpoint, request)


class _Nobody:
    """Is told, and does nothing."""

    def abandon(self, command: Release) -> None: ...

    def settled(self, settlement: Settlement) -> None: ...
