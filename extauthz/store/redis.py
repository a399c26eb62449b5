"""The ledger in Redis or Valkey: each command is one script, so it happens at once or not at all.

The table of `extauthz.ledger` is in `scripts/*.lua`; here commands become arguments and replies
become answers. What may go wrong on the way is the business of `courier.py`, and on which server an
org is that of its topology.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from uuid import uuid4

from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
    AlreadyEnded,
    Applied,
    Balance,
    ClockSkewError,
    Ending,
    Key,
    KeyGone,
    Override,
    Paused,
    Refused,
    Release,
    Renew,
    Reserve,
    ReserveAnswer,
    Reserved,
    Seal,
    Sealed,
    Settle,
    Standing,
    State,
)
from extauthz.store.base import BooksClosedError, StoreError
from extauthz.store.bookkeeping import Bookkeeping
from extauthz.store.cluster import ClusterTopology
from extauthz.store.codec import (
    SKEW,
    behind_call,
    check_replicas,
    checked,
    claim_call,
    claimed,
    counters,
    ending,
    ending_or_error,
    expire_call,
    leases_key,
    open_call,
    override_call,
    record_key,
    release_call,
    renew_call,
    reserve_call,
    seal_call,
    settle_call,
    sum_of,
)
from extauthz.store.connections import Connections
from extauthz.store.courier import Courier
from extauthz.store.readiness import check_server
from extauthz.store.redis_reads import RedisReads
from extauthz.store.script import Call, Wait
from extauthz.store.sentinel import SentinelTopology
from extauthz.store.topology import Standalone, Topology
from extauthz.store.url import Kind, StoreUrl

COMMAND_TIMEOUT_S = 1.0
CONNECTIONS_MAX = 32


class RedisStore(RedisReads):
    """A `LedgerStore` on one primary, on that which Sentinels name, or on a Cluster."""

    def __init__(
        self, courier: Courier, *, require_durable: bool = True, wait: Wait | None = None
    ) -> None:
        super().__init__(courier)
        self._require_durable = require_durable
        self._wait = wait
        self._open_orgs: set[str] = set()
        self._distrusted: dict[str, str] = {}

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        command_timeout_s: float = COMMAND_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
        require_durable: bool = True,
        wait_replicas: int = 0,
    ) -> "RedisStore":
        """A store at a URL as `extauthz.store.url` describes them; nothing is connected yet.

        Args:
            url: where it is, with user and password if it wants them.
            command_timeout_s: for one command, with all waiting, searching and asking again.
            connections_max: how many commands are under way at once, on each server.
            require_durable: whether `check_ready` refuses a server that may forget on a crash.
            wait_replicas: how many replicas must have a reservation before it is granted, and an
                override before it is said to be done.

        Raises:
            StoreError: the URL is not one, or names a file that cannot be read.
        """
        parsed = StoreUrl.parse(url)
        parsed.check_files()
        topology = _topology(parsed, command_timeout_s, connections_max)
        # In time to be told how many replicas there were, even where a server has to be told the
        # script: then the wait behind its refusal goes by as well.
        wait = Wait(wait_replicas, int(command_timeout_s * 1000 / 3)) if wait_replicas else None
        courier = Courier(topology, command_timeout_s=command_timeout_s)
        return cls(courier, require_durable=require_durable, wait=wait)

    @property
    def bookkeeping(self) -> Bookkeeping:
        """What an audit and a rebuild work with, over the same connections."""
        return Bookkeeping(self._courier)

    @property
    def primary_changes(self) -> int:
        """How often another server was found to be a primary: acknowledged writes may be lost."""
        return self._courier.topology.primary_changes

    async def reserve(self, command: Reserve) -> ReserveAnswer:
        """See `LedgerStore`."""
        id_, status, *rest = await self._write(reserve_call(command, self._wait), command.at_ms)
        if self._wait is not None:
            check_replicas(self._wait.replicas, id_, status, int(rest.pop()))
        if status == "ended":
            return AlreadyEnded(id_, State(rest[0]))
        if status == "paused":
            return Paused(id_, int(rest[0]) if rest[0] else None)
        if status == "key_gone":
            return KeyGone(id_)
        cap = None if command.cap_range is None else int(rest.pop() or 0) or None
        before = tuple(
            Balance(sum_of(spent), int(held))
            for spent, held in zip(rest[::3], rest[1::3], strict=True)
        )
        limits = tuple(map(int, rest[2::3]))
        if status == "refused":
            return Refused(id_, before, limits)
        if status == "held_already":
            return Reserved(id_, before, limits, cap)
        # The script answers with the amounts that it read: their sums are exact only here.
        pairs = zip(command.holds, before, strict=True)
        after = tuple(Balance(b.spent, b.held + hold.amount_under(cap)) for hold, b in pairs)
        return Reserved(id_, after, limits, cap)

    async def settle(self, command: Settle) -> Ending:
        """See `LedgerStore`."""
        return ending(await self._write(settle_call(command), command.at_ms))

    async def settle_many(self, commands: Sequence[Settle]) -> list[Ending | Exception]:
        """See `LedgerStore`."""
        return await self._courier.in_own_task(lambda: self._settle_many(commands))

    async def _settle_many(self, commands: Sequence[Settle]) -> list[Ending | Exception]:
        """In one batch where the books are open; no org waits until another's have been opened."""
        answers: dict[int, Ending | Exception] = {}
        at_once: list[int] = []
        first: defaultdict[str, list[int]] = defaultdict(list)
        for at, command in enumerate(commands):
            is_open = command.org in self._open_orgs and command.org not in self._distrusted
            (at_once if is_open else first[command.org]).append(at)

        async def settle(places: Sequence[int]) -> None:
            calls: dict[int, Call] = {}
            for at in places:
                try:
                    calls[at] = settle_call(commands[at])
                except ValueError as error:
                    answers[at] = error
            replies = await self._courier.run_together(list(calls.values()))
            for at, reply in zip(calls, replies, strict=True):
                answers[at] = ending_or_error(commands[at].org, reply)

        async def open_and_settle(org: str, places: Sequence[int]) -> None:
            try:
                await self._open_books(org, commands[places[0]].at_ms)
            except (StoreError, ClockSkewError) as error:
                answers.update(dict.fromkeys(places, error))
                return
            await settle(places)

        async with asyncio.TaskGroup() as group:
            group.create_task(settle(at_once))
            for org, places in first.items():
                group.create_task(open_and_settle(org, places))
        return [answers[at] for at in range(len(commands))]

    async def release(self, command: Release) -> Ending:
        """See `LedgerStore`."""
        return ending(await self._write(release_call(command), command.at_ms))

    async def renew(self, command: Renew) -> bool:
        """See `LedgerStore`."""
        _, status = await self._run(renew_call(command))
        return status == "renewed"

    async def expire(
        self, org: str, at_ms: int, settle_horizon_ms: int, count: int
    ) -> list[Ending]:
        """See `LedgerStore`. Raises only if not one of them could be ended."""
        await self._open_books(org, at_ms)
        calls = [
            expire_call(org, id_, counters, at_ms, settle_horizon_ms)
            for id_, counters in await self._due(org, at_ms, count)
        ]
        replies = [checked(org, answer) for answer in await self._courier.run(calls)]
        endings = [
            ending(reply)
            for reply in replies
            if not isinstance(reply, Exception) and reply[1] != "not_due"
        ]
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        if errors and not endings:
            raise errors[0]
        return endings

    async def override(self, command: Override) -> Applied:
        """See `LedgerStore`."""
        call = override_call(command, self._wait)
        id_, applied, *rest = await self._write(call, command.at_ms)
        if self._wait is not None:
            check_replicas(self._wait.replicas, id_, applied, int(rest.pop()))
        return Applied(applied)

    async def key(self, org: str, key_hash: str) -> Key | None:
        """See `LedgerStore`."""
        if org in self._distrusted:
            raise BooksClosedError(org, self._distrusted[org])
        key, is_open = await self._key(org, key_hash)
        if not is_open and org in self._open_orgs:
            raise BooksClosedError(org)
        return key

    def expect_books(self, org: str) -> None:
        """See `LedgerStore`."""
        self._open_orgs.add(org)

    def distrust_books(self, org: str, why: str | None) -> None:
        """See `LedgerStore`."""
        self._distrusted.pop(org, None)
        if why is not None:
            self._distrusted[org] = why

    async def claim_archive(self, org: str, holder: str, at_ms: int, until_ms: int) -> Standing:
        """See `LedgerStore`."""
        return claimed(await self._run(claim_call(org, uuid4().hex, holder, at_ms, until_ms)))

    async def seal(self, command: Seal) -> Sealed:
        """See `LedgerStore`."""
        _, sealed = await self._run(seal_call(command, uuid4().hex))
        return Sealed(sealed)

    async def note_behind(self, org: str, at_ms: int, archived_seq: int, why: str | None) -> None:
        """See `LedgerStore`."""
        await self._run(behind_call(org, uuid4().hex, at_ms, archived_seq, why))

    async def check_ready(self) -> None:
        """See `LedgerStore`."""
        await self._courier.in_own_task(self._check_ready)

    async def close(self) -> None:
        """See `LedgerStore`."""
        await self._courier.close()

    async def _open_books(self, org: str, at_ms: int) -> None:
        """Open an org's books once in the life of this store; those lost later stay closed."""
        if org in self._distrusted:
            raise BooksClosedError(org, self._distrusted[org])
        if org not in self._open_orgs:
            await self._run(open_call(org, at_ms))
            self._open_orgs.add(org)

    async def _check_ready(self) -> None:
        for server in await self._courier.topology.primaries():
            await check_server(server, require_durable=self._require_durable)

    async def _due(self, org: str, at_ms: int, count: int) -> list[tuple[str, tuple[str, ...]]]:
        """Reservations whose lease has run out, each with the counters that its record names."""
        leases = ("ZRANGE", leases_key(org), "-inf", str(at_ms), "BYSCORE", "LIMIT", "0")
        time, ids = await self._courier.read(org, ("TIME",), (*leases, str(count)))
        # The script checks this too, but a slow clock would find nothing due, and nobody notice.
        if abs(int(time[0]) * 1000 + int(time[1]) // 1000 - at_ms) > CLOCK_SKEW_MS_MAX:
            raise ClockSkewError(SKEW)
        records = await self._courier.read(org, *(("HGETALL", record_key(org, id_)) for id_ in ids))
        return [(id_, counters(record)) for id_, record in zip(ids, records, strict=True)]

    async def _write(self, call: Call, at_ms: int) -> list[str]:
        """Run a script on books that are open: one task, so that nobody leaves between the two."""
        if call.org in self._open_orgs and call.org not in self._distrusted:
            return await self._run(call)

        async def work() -> list[str]:
            await self._open_books(call.org, at_ms)
            return await self._run(call)

        return await self._courier.in_own_task(work)

    async def _run(self, call: Call) -> list[str]:
        reply = checked(call.org, await self._courier.run_one(call))
        if isinstance(reply, Exception):
            raise reply
        return reply


def _topology(url: StoreUrl, command_timeout_s: float, size: int) -> Topology:
    match url.kind:
        case Kind.SENTINEL:
            return SentinelTopology(url, command_timeout_s=command_timeout_s, size=size)
        case Kind.CLUSTER:
            return ClusterTopology(url, command_timeout_s=command_timeout_s, size=size)
    return Standalone(Connections(url.text, command_timeout_s=command_timeout_s, size=size))
