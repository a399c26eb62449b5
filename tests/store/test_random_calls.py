"""Thousands of calls at once with random endings: no limit passed, and the sums come out.

Calls go through the service's own objects to a store. What the store did, in the order in which it
did it, is told again to `Books`: plain sums, with their own arithmetic of windows and prices, which
say of each step what had to come of it.
"""

import asyncio
import contextlib
import heapq
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from servers import Server
from service_rules import InlineReader, call

from extauthz.identity import hash_key
from extauthz.ledger import (
    AlreadyEnded,
    Balance,
    Ending,
    Outcome,
    Refused,
    Release,
    Renew,
    Reserve,
    Reserved,
    Settle,
)
from extauthz.policies import Agent, Budget, Policies, Scope, Unit, Upstream
from extauthz.pricing import OwnPrice, PriceBook
from extauthz.providers.base import CapturedResponse
from extauthz.service.authorize import Authorizer
from extauthz.service.background import AbandonQueue, ExpiryLoop
from extauthz.service.call_record import CallRecord
from extauthz.service.completed_call import CompletedCall
from extauthz.service.identify import Identifier
from extauthz.service.key_ring import KeyRing
from extauthz.service.reserving import Reserving
from extauthz.service.rules import Rules
from extauthz.service.settle import Settlement, Settler
from extauthz.service.waiting import HeldRoom
from extauthz.store import script
from extauthz.store.base import LedgerStore, counter_key
from extauthz.store.memory import MemoryStore
from extauthz.store.redis import RedisStore
from extauthz.windows import Period, Window

AGENTS, TEAMS, AT_ONCE = 50, 5, 24
MINUTE_MS = MEAN_STEP_MS = 60_000
HOUR_MS, DAY_MS, WEEK_MS = 60 * MINUTE_MS, 1440 * MINUTE_MS, 7 * 1440 * MINUTE_MS
LENGTHS_MS = {"hour": HOUR_MS, "day": DAY_MS, "week": WEEK_MS}
LEASE_MS, HORIZON_MS = 15 * MINUTE_MS, 2 * HOUR_MS
THURSDAY_MS = 4 * DAY_MS
"""How long before the first Monday the epoch began."""

START_MS = 4_000_000_000_000 // WEEK_MS * WEEK_MS + THURSDAY_MS - 2 * HOUR_MS
"""Late on a Sunday, so far from now that the server, by its own clock, forgets nothing."""

PRICE = Decimal("7.3137")
TOKENS = range(100, 1001, 100)
"""All amounts are multiples of one, so that calls often come to the very edge of a limit."""

Bucket = tuple[str, str, int]
"""whose, how long, and since when"""

LIMITS = {
    ("agent", "hour"): 12,
    ("agent", "day"): 68,
    ("agent", "week"): 150,
    ("team", "hour"): 60,
    ("team", "day"): 547,
    ("team", "week"): 1400,
    ("org", "hour"): 178,
    ("org", "day"): 2598,
    ("org", "week"): 6900,
}
"""In hundreds of tokens: each stands in the way of some calls where one a minute comes."""


def cost_of(tokens: int) -> int:
    """7.3137 USD a million tokens are 731,370 nano-USD a hundred."""
    return tokens // 100 * 731_370


def limit_of(whose: str, period: str) -> int:
    """Those of hours can be spent to the last nano-USD; the others are one short of that."""
    return LIMITS[whose, period] * cost_of(100) - (period != "hour")


def buckets_of(agent: int, at_ms: int) -> tuple[Bucket, ...]:
    starts = {
        "hour": at_ms - at_ms % HOUR_MS,
        "day": at_ms - at_ms % DAY_MS,
        "week": at_ms - (at_ms - THURSDAY_MS) % WEEK_MS,
    }
    owners = (f"agent/a{agent}", f"team/t{agent % TEAMS}", "org/acme")
    return tuple((owner, period, start) for owner in owners for period, start in starts.items())


def rules_of(org: str, stream_ms_max: int) -> Rules:
    def budgets(scope: Scope, name: str) -> tuple[Budget, ...]:
        return tuple(
            Budget(org, scope, name, Window(period), Unit.USD, limit_of(scope.value, period.value))
            for period in (Period.HOUR, Period.DAY, Period.WEEK)
        )

    of_org = budgets(Scope.ORG, "acme")
    of_team = [budgets(Scope.TEAM, f"t{team}") for team in range(TEAMS)]
    agents = [
        Agent(
            f"a{n}",
            org,
            f"t{n % TEAMS}",
            (*budgets(Scope.AGENT, f"a{n}"), *of_team[n % TEAMS], *of_org),
            hold_wait_ms=0,
        )
        for n in range(AGENTS)
    ]
    policies = Policies(
        agents={agent.name: agent for agent in agents},
        agent_by_key_hash={hash_key(f"xa_{agent.name}"): agent for agent in agents},
        upstreams={"openai": Upstream("openai", "openai", "openai")},
        budgets=tuple({b.id: b for agent in agents for b in agent.budgets}.values()),
        lease_ms=LEASE_MS,
        settle_horizon_ms=HORIZON_MS,
        stream_ms_max=stream_ms_max,
        orgs=(org,),
    )
    return Rules(policies, PriceBook([OwnPrice("openai", "small", Decimal(0), PRICE)]))


class Step(NamedTuple):
    """What the store did."""

    kind: str
    id: str
    at_ms: int


@dataclass(frozen=True)
class Asked:
    """What a test knows of a call before anybody else does."""

    agent: int
    tokens: int
    at_ms: int = 0


ASKED: ContextVar[Asked] = ContextVar("ASKED")


@dataclass(repr=False)  # a failing test would write it all down
class Witness:
    """A store that writes down what it is told and what it answers, also to who has left."""

    store: LedgerStore
    clock: "Clock"
    steps: list[Step] = field(default_factory=list)
    """in the order of the answers: for a store that does one thing after the other"""
    answers: defaultdict[tuple[str, str], list[tuple[int, Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    asked: dict[str, Asked] = field(default_factory=dict)
    expired: set[str] = field(default_factory=set)

    async def reserve(self, command: Reserve) -> Any:
        self.asked[command.id] = replace(ASKED.get(), at_ms=command.at_ms)
        return await self._see("reserve", command, self.store.reserve(command))

    async def release(self, command: Release) -> Any:
        return await self._see("release", command, self.store.release(command))

    async def renew(self, command: Renew) -> Any:
        return await self._see("renew", command, self.store.renew(command))

    async def settle_many(self, commands: Sequence[Settle]) -> Any:
        at = [self._expect("settle", command) for command in commands]

        async def settle() -> Any:
            answers = await self.store.settle_many(commands)
            for (known, n), command, answer in zip(at, commands, answers, strict=True):
                known[n] = command.at_ms, answer
                self.steps.append(Step("settle", command.id, command.at_ms))
            return answers

        return await asyncio.shield(asyncio.create_task(settle()))

    async def expire(self, org: str, at_ms: int, settle_horizon_ms: int, count: int) -> Any:
        endings = await self.store.expire(org, at_ms, settle_horizon_ms, count)
        for ending in endings:
            assert ending.id not in self.expired
            self.expired.add(ending.id)
            self.answers["expire", ending.id].append((at_ms, ending))
            self.steps.append(Step("expire", ending.id, at_ms))
        return endings

    def _expect(self, kind: str, command: Any) -> tuple[list[tuple[int, Any]], int]:
        assert command.at_ms == self.clock.now, "no command is older than the clock"
        known = self.answers[kind, command.id]
        known.append((command.at_ms, None))
        return known, len(known) - 1

    async def _see(self, kind: str, command: Any, telling: Coroutine[Any, Any, Any]) -> Any:
        known, n = self._expect(kind, command)

        async def tell() -> Any:
            answer = await telling
            known[n] = command.at_ms, answer
            self.steps.append(Step(kind, command.id, command.at_ms))
            return answer

        return await asyncio.shield(asyncio.create_task(tell()))


class Clock:
    def __init__(self) -> None:
        self.now = START_MS

    def __call__(self) -> int:
        return self.now


@dataclass
class Entry:
    """One call in the books."""

    buckets: tuple[Bucket, ...]
    amount: int
    state: str
    lease_ms: int = 0
    observed: int = 0
    charged: int = 0


class Books:
    """What had to come of each step."""

    def __init__(self, traffic: "Traffic") -> None:
        self.witness = traffic.witness
        self.told, self.seen, self.too_old = traffic.told, traffic.seen, traffic.too_old
        self.spent: Counter[Bucket] = Counter()
        self.held: Counter[Bucket] = Counter()
        self.calls: dict[str, Entry] = {}
        self.counts: Counter[Any] = Counter()
        self.nth: Counter[tuple[str, str]] = Counter()

    def limit(self, bucket: Bucket) -> int:
        return limit_of(bucket[0].split("/")[0], bucket[1])

    def replay(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.kind == "expire":
                self._expire(step)
                continue
            n = self.nth[step.kind, step.id]
            self.nth[step.kind, step.id] += 1
            at_ms, answer = self.witness.answers[step.kind, step.id][n]
            getattr(self, f"_{step.kind}")(step.id, n, at_ms, answer)

    def _reserve(self, id_: str, _n: int, at_ms: int, answer: Any) -> None:
        asked = self.witness.asked[id_]
        amount, buckets = cost_of(asked.tokens), buckets_of(asked.agent, at_ms)
        if id_ in self.calls:
            assert isinstance(answer, AlreadyEnded), "it was abandoned before it arrived"
            self.counts["abandoned before"] += 1
            return
        full = [b for b in buckets if self.spent[b] + self.held[b] + amount > self.limit(b)]
        if full:
            assert isinstance(answer, Refused), f"{id_} passes {full}"
            for owner, period, _ in full:
                self.counts["refused", owner.split("/")[0], period] += 1
            return
        assert isinstance(answer, Reserved), f"{id_} would have fitted"
        self.counts["granted"] += 1
        self.calls[id_] = Entry(buckets, amount, "held", at_ms + LEASE_MS)
        for bucket, told in zip(buckets, answer.balances, strict=True):
            self.held[bucket] += amount
            assert self.spent[bucket] + self.held[bucket] <= self.limit(bucket)
            assert told == Balance(self.spent[bucket], self.held[bucket]), bucket

    def _settle(self, id_: str, n: int, _at_ms: int, answer: Any) -> None:
        cost = self.told[id_][n]
        if id_ in self.too_old:
            assert answer == Ending(id_, Outcome.DEAD_LETTER)
            self.counts[Outcome.DEAD_LETTER] += 1
            return
        known = self.calls.get(id_)
        if known is None:
            asked = self.witness.asked[id_]
            known = Entry(buckets_of(asked.agent, asked.at_ms), 0, "lost")
            self.calls[id_] = known
        repeated = Outcome.DUPLICATE if cost == known.charged else Outcome.CONFLICT
        outcome = {
            "lost": Outcome.RECOVERED,
            "held": Outcome.SETTLED,
            "expired": Outcome.LATE,
            "released": Outcome.ANOMALY,
            "settled": repeated,
        }[known.state]
        if known.state != "settled":
            self.counts["overshoot"] += known.state == "held" and cost > known.amount
            self._end(known, "settled", cost)
        self._must_be(answer, outcome, known)

    def _release(self, id_: str, _n: int, _at_ms: int, answer: Any) -> None:
        known = self.calls.get(id_)
        if known is None:  # a refused one, or one that comes after
            self.calls[id_] = Entry((), 0, "released")
            assert answer == Ending(id_, Outcome.RELEASED)
            return
        outcome = {
            "held": Outcome.RELEASED,
            "expired": Outcome.LATE,
            "released": Outcome.DUPLICATE,
            "settled": Outcome.CONFLICT if known.charged else Outcome.DUPLICATE,
        }[known.state]
        if known.state in ("held", "expired"):
            self._end(known, "released" if known.state == "held" else "settled", 0)
        self._must_be(answer, outcome, known)

    def _renew(self, id_: str, n: int, at_ms: int, answer: Any) -> None:
        known = self.calls[id_]
        assert answer == (known.state == "held")
        if answer:
            self.counts["renewed"] += 1
            known.lease_ms = max(known.lease_ms, at_ms + LEASE_MS)
            known.observed = max(known.observed, self.seen[id_][n])

    def _expire(self, step: Step) -> None:
        known = self.calls[step.id]
        if known.state != "held" or known.lease_ms > step.at_ms:
            return  # it was due when it was looked for
        self._end(known, "expired", max(known.amount, known.observed))
        ((_, answer),) = self.witness.answers["expire", step.id]
        self._must_be(answer, Outcome.EXPIRED, known)

    def _end(self, known: Entry, state: str, cost: int) -> None:
        for bucket in known.buckets:
            if known.state == "held":
                self.held[bucket] -= known.amount
            self.spent[bucket] += cost - known.charged
        known.state, known.charged = state, cost

    def _must_be(self, answer: Any, outcome: Outcome, known: Entry) -> None:
        assert isinstance(answer, Ending)
        assert answer.outcome is outcome
        assert answer.charged == (known.charged,) * len(known.buckets)
        self.counts[outcome] += 1


@dataclass(repr=False)
class Traffic:
    """Agents whose calls end in every way that calls can."""

    store: LedgerStore
    org: str
    calls: int
    stream_ms_max: int = 8 * WEEK_MS
    """So long is a counter remembered at least: to be looked at in the end."""

    def __post_init__(self) -> None:
        self.clock = Clock()
        self.witness = Witness(self.store, self.clock)
        self.told: defaultdict[str, list[int]] = defaultdict(list)
        self.seen: defaultdict[str, list[int]] = defaultdict(list)
        self.too_old: set[str] = set()
        self.numbers = itertools.count()
        self.later: list[tuple[int, int, CallRecord, int, str]] = []
        self.looking = asyncio.Lock()
        rules, room = rules_of(self.org, self.stream_ms_max), HeldRoom()
        everything: Any = self.witness
        self.abandoner = AbandonQueue(everything, room, self.clock)
        self.settler = Settler(rules, everything, room, self.clock, self)
        identifier = Identifier(rules, KeyRing(everything), self.clock)
        reserving = Reserving(rules, everything, identifier, room, self.abandoner, self.clock)
        self.authorizer = Authorizer(rules, identifier, InlineReader(), reserving, self.clock)
        self.leases = ExpiryLoop(
            rules, everything, room, self.clock, {}, expired=lambda _: None, backlog=lambda: 0
        )

    def settled(self, settlement: Settlement) -> None:
        """Nothing: the witness has seen it."""

    async def run(self) -> None:
        abandoning = asyncio.create_task(self.abandoner.run())
        left = iter(range(self.calls))
        async with asyncio.TaskGroup() as group:
            for worker in range(AT_ONCE):
                group.create_task(self._work(Random(worker), left))
        abandoning.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await abandoning
        await self.abandoner.drain()
        while self.later:
            self.clock.now = max(self.clock.now, self.later[0][0])
            await self._end_what_is_due()
        self.clock.now += LEASE_MS
        await self.leases.look()

    async def _work(self, rng: Random, left: Iterator[int]) -> None:
        for _ in left:
            self.clock.now += rng.randrange(2 * MEAN_STEP_MS)
            await self._end_what_is_due()
            if rng.random() < 0.05 and not self.looking.locked():
                async with self.looking:
                    await self.leases.look()
            record, asked = await self._ask(rng)
            if record is not None:
                await self._end(rng, record, asked)

    async def _ask(self, rng: Random) -> tuple[CallRecord | None, Asked]:
        asked = Asked(rng.randrange(AGENTS), rng.choice(TOKENS))
        ASKED.set(asked)
        headers = {"authorization": f"Bearer xa_a{asked.agent}"}
        deciding = asyncio.create_task(
            self.authorizer.authorize(call(asked.tokens, headers=headers, request_id=""))
        )
        if rng.random() < 0.05:
            for _ in range(rng.randrange(1, 6)):
                await asyncio.sleep(0)
            deciding.cancel()
        try:
            return (await deciding).record, asked
        except asyncio.CancelledError:
            return None, asked  # the authorizer has abandoned what it had sent

    async def _end(self, rng: Random, record: CallRecord, asked: Asked) -> None:
        used = rng.randrange(0, asked.tokens + 1, 100)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)  # others come first
        match rng.randrange(13):
            case 0 | 1:
                await self._settle(record, used)
            case 2:
                await self._settle(record, asked.tokens + rng.choice(TOKENS))
            case 3:
                await self._settle(record, None)
            case 4:
                await self._enter(record, status=429)
            case 5:
                self.abandoner.abandon(self.settler.release_command(record))
            case 6:
                pass  # nobody ever tells
            case 7:
                self._plan(record, used, "settle", LEASE_MS + rng.randrange(HOUR_MS))
            case 8:
                await self._settle(record, used)
                again = used if rng.random() < 0.5 else used + 100
                self._plan(record, again, "settle", rng.randrange(HOUR_MS))
            case 9:
                await self._enter(record, status=429)
                if rng.random() < 0.5:
                    self._plan(record, used, "settle", rng.randrange(HOUR_MS))
                else:
                    await self._enter(record, status=429)
            case 10:
                for minutes in range(10, rng.choice((20, 40, 60)), 10):
                    self._plan(record, asked.tokens + minutes * 10, "renew", minutes * MINUTE_MS)
                if rng.random() < 0.5:
                    self._plan(record, asked.tokens, "settle", HOUR_MS)
            case 11:
                lost = record._replace(reservation_id=str(uuid4()))
                self.witness.asked[lost.reservation_id] = replace(
                    asked, at_ms=record.reserved_at_ms
                )
                await self._settle(lost, used)
                if rng.random() < 0.5:
                    await self._settle(lost, used)
                self._plan(record, 0, "release", LEASE_MS + rng.randrange(HOUR_MS))
            case 12:
                reserved_at_ms = self.clock.now - HORIZON_MS - 1
                old = record._replace(reservation_id=str(uuid4()), reserved_at_ms=reserved_at_ms)
                self.too_old.add(old.reservation_id)
                await self._settle(old, used)
                self._plan(record, 0, "release", LEASE_MS + rng.randrange(HOUR_MS))

    def _plan(self, record: CallRecord, tokens: int, kind: str, in_ms: int) -> None:
        due_ms = self.clock.now + in_ms
        heapq.heappush(self.later, (due_ms, next(self.numbers), record, tokens, kind))

    async def _end_what_is_due(self) -> None:
        batch = []
        while self.later and self.later[0][0] <= self.clock.now:
            _, _, record, tokens, kind = heapq.heappop(self.later)
            if kind == "settle":
                batch.append(self._settlement(record, tokens))
            elif kind == "renew":
                self.seen[record.reservation_id].append(cost_of(tokens))
                await self._enter(record, tokens, periodic=True)
            else:
                await self._enter(record, status=429)
        for entry, cost in batch:
            self.told[entry.record.reservation_id].append(cost)
        assert await self.settler.settle([entry for entry, _ in batch]) == []

    async def _settle(self, record: CallRecord, tokens: int | None) -> None:
        entry, cost = self._settlement(record, tokens)
        self.told[record.reservation_id].append(cost)
        assert await self.settler.settle([entry]) == []

    def _settlement(self, record: CallRecord, tokens: int | None) -> tuple[CompletedCall, int]:
        """An entry, and what it costs; without usage all that was asked for."""
        id_ = record.reservation_id
        cost = cost_of(self.witness.asked[id_].tokens if tokens is None else tokens)
        return self._entry(record, tokens), cost

    async def _enter(self, record: CallRecord, tokens: int | None = None, **how: Any) -> None:
        assert await self.settler.settle([self._entry(record, tokens, **how)]) == []

    def _entry(
        self, record: CallRecord, tokens: int | None, *, status: int = 200, periodic: bool = False
    ) -> CompletedCall:
        captured = CapturedResponse()
        if tokens is not None:
            usage = {"prompt_tokens": 7, "completion_tokens": tokens}
            captured = CapturedResponse(
                usage=json.dumps(usage), model='"small"', complete=not periodic
            )
        return CompletedCall(
            record, captured, status, via_upstream=True, left=True, refused=False,
            periodic=periodic, ended_at_ms=self.clock.now,
        )  # fmt: skip

    async def check(self, steps: Sequence[Step]) -> Counter[Any]:
        """Tell the books what the store did, and compare how both stand in the end."""
        books = Books(self)
        books.replay(steps)
        for (kind, id_), answers in self.witness.answers.items():
            assert kind == "expire" or books.nth[kind, id_] == len(answers), "each is replayed"
        assert books.counts[Outcome.EXPIRED] == len(self.witness.expired)
        assert not any(books.held.values())
        assert all(known.state != "held" for known in books.calls.values())
        sums: Counter[Bucket] = Counter()
        for known in books.calls.values():
            for bucket in known.buckets:
                sums[bucket] += known.charged
        keys = {
            counter_key(self.org, f"{owner}/{period}/usd", start): sums[owner, period, start]
            for owner, period, start in sums
            if start + LENGTHS_MS[period] + self.stream_ms_max > self.clock.now
        }
        stands = await self.store.balances(self.org, list(keys), self.clock.now)
        assert dict(zip(keys, stands, strict=True)) == {k: Balance(n, 0) for k, n in keys.items()}
        assert await self.store.open_reservations(self.org) == 0
        return books.counts


@contextlib.asynccontextmanager
async def order_of(server: Server, org: str) -> AsyncIterator[list[Step]]:
    """The scripts that a server runs on an org's keys, in its own order (MONITOR)."""
    kinds = {
        getattr(script, kind.upper()).sha: kind
        for kind in ("reserve", "settle", "release", "renew", "expire")
    }
    with contextlib.closing(server.client()) as client:
        for kind in kinds.values():
            client.script_load(getattr(script, kind.upper()).text)
        steps: list[Step] = []
        reader, writer = await asyncio.open_unix_connection(str(server.socket), limit=2**20)
        writer.write(b"MONITOR\r\n")
        assert (await reader.readline()) == b"+OK\r\n"

        async def read() -> None:
            of_org = f"{{{org}}}".encode()
            while b"that was all" not in (line := await reader.readline()):
                if of_org in line and b'"EVALSHA"' in line:
                    _, sha, keys, *rest = re.findall(r'"([^"]*)"', line.decode())
                    id_, at_ms = rest[int(keys) : int(keys) + 2]
                    if sha in kinds:  # the books of a new org are opened first
                        steps.append(Step(kinds[sha], id_, int(at_ms)))

        reading = asyncio.create_task(read())
        yield steps
        client.echo("that was all")
        await reading
        writer.close()
        await writer.wait_closed()


def must_be_varied(counts: Counter[Any], calls: int) -> None:
    """Every ending came to pass, and every limit stood in somebody's way."""
    for what in ("granted", "overshoot", "renewed", *Outcome, *(("refused", *of) for of in LIMITS)):
        assert counts[what] >= calls // 500, (what, counts)


SIZES = [
    pytest.param(5_000, id="5,000 calls"),
    pytest.param(100_000, marks=[pytest.mark.full, pytest.mark.timeout(1800)], id="100,000 calls"),
]


@pytest.mark.parametrize("calls", SIZES)
async def test_in_memory_random_calls_pass_no_limit_and_their_endings_add_up(monkeypatch, calls):
    # The clock may move between a command and its turn.
    monkeypatch.setattr("extauthz.store.memory.CLOCK_SKEW_MS_MAX", 10**15)
    # It looks at all that it remembers with every command: the hours are forgotten, the days stay.
    store = MemoryStore(lambda: traffic.clock.now)
    traffic = Traffic(store, "acme", calls, stream_ms_max=DAY_MS)
    await traffic.run()
    must_be_varied(await traffic.check(traffic.witness.steps), calls)


@pytest.mark.usefixtures("without_skew_checks")
@pytest.mark.parametrize("calls", SIZES)
async def test_on_a_server_random_calls_pass_no_limit_and_their_endings_add_up(valkey, calls):
    store = RedisStore.from_url(valkey.url, command_timeout_s=30)
    traffic = Traffic(store, f"acme-{uuid4()}", calls)
    async with order_of(valkey, traffic.org) as steps:
        await traffic.run()
    counts = await traffic.check(steps)
    await store.close()
    must_be_varied(counts, calls)
