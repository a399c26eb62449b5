"""Slots that move, primaries that fall, under load: nothing counted twice or granted blind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import pytest
from clusters import Cluster, Node, Sentinels, slot_of
from ledger_calls import DAY_MS, Call, now_ms
from servers import until

from extauthz.ledger import Balance, ClockSkewError, Ending, Outcome, Reserved
from extauthz.store.base import StoreError, StoreUnavailableError, org_prefix
from extauthz.store.redis import RedisStore
from extauthz.store.url import Address, StoreUrl

PATIENCE_SECONDS = 90


class Load:
    """Agents that reserve and settle on one org, and what they were told."""

    def __init__(self, store: RedisStore, agents: int = 8) -> None:
        self.first = Call()
        self.settled: list[Call] = []
        self.held: list[Call] = []
        self.refusals: list[Exception] = []
        self._store, self._agents = store, agents
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._agent()) for _ in range(self._agents)]
        await self.until_settled(20)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def until_settled(self, more: int) -> None:
        """Wait until so many more calls have been settled."""
        wanted = len(self.settled) + more
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.settled) < wanted:
                for task in self._tasks:
                    if task.done():
                        await task
                await asyncio.sleep(0.005)

    async def until_refused(self, times: int) -> None:
        """Wait until so many commands have had no answer."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.refusals) < times:  # noqa: ASYNC110 of several tasks
                await asyncio.sleep(0.005)

    async def _agent(self) -> None:
        while not self._stop.is_set():
            call = self.first.sibling()
            if await self._told(self._reserve(call)) is None:
                # As the service does: who saw no answer releases, until that is acknowledged.
                await self._insist(self._release, call)
                continue
            self.held.append(call)
            ending = await self._insist(self._settle, call)
            # A repeat after an answer that was lost is a duplicate, and counted once.
            assert ending.outcome in (Outcome.SETTLED, Outcome.DUPLICATE, Outcome.RECOVERED), ending
            self.settled.append(call)

    async def _reserve(self, call: Call) -> object:
        answer = await self._store.reserve(call.reserve(limit=10**12, lease_ms=DAY_MS))
        assert isinstance(answer, Reserved), answer
        return answer

    async def _release(self, call: Call) -> object:
        return await self._store.release(call.release())

    async def _settle(self, call: Call) -> Ending:
        return await self._store.settle(call.settle())

    async def _insist(self, command: Any, call: Call) -> Any:
        while True:
            if (answer := await self._told(command(call))) is not None:
                return answer
            await asyncio.sleep(0.01)

    async def _told(self, answer: Any) -> Any:
        try:
            return await answer
        except (StoreUnavailableError, ClockSkewError) as error:
            self.refusals.append(error)
            return None


def once_each(calls: list[Call]) -> tuple[Balance, Balance]:
    """The balances if every call was billed once."""
    return Balance(spent=700 * len(calls)), Balance(spent=70 * len(calls))


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(cluster.url)
    yield store
    await store.close()


async def moved_half_way(cluster: Cluster, slot: int) -> tuple[Node, Node]:
    source = cluster.owner(slot)
    return source, next(node for node in cluster.nodes if node is not source)


async def test_a_slot_that_moves_to_and_fro_under_load_loses_and_doubles_nothing(
    cluster: Cluster, store: RedisStore
) -> None:
    async with Load(store) as load:
        slot = slot_of(load.first.org)
        for node in (*cluster.nodes, cluster.nodes[0]):
            if node is not cluster.owner(slot):
                await asyncio.to_thread(cluster.move, slot, node)
                await load.until_settled(20)

    balances = await store.balances(load.first.org, load.first.keys, now_ms())
    assert balances == once_each(load.settled)
    assert await store.open_reservations(load.first.org) == 0
    assert store.primary_changes == 0


async def test_a_reservation_on_its_way_between_two_nodes_is_found_on_either(
    cluster: Cluster, store: RedisStore
) -> None:
    call = Call()
    other = call.sibling()
    for each in (call, other):
        await store.reserve(each.reserve(lease_ms=DAY_MS))
    slot = slot_of(call.org)
    source, target = await moved_half_way(cluster, slot)

    with cluster.moving(slot, source, target):
        assert await store.renew(call.renew(lease_ms=DAY_MS))  # all is still at the source
        for key in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        assert await store.renew(call.renew(lease_ms=DAY_MS))  # ASK: all has left
        assert (await store.settle(call.settle())).outcome is Outcome.SETTLED
        assert (await store.balances(call.org, call.keys, now_ms()))[0] == Balance(700, 1000)

    assert (await store.settle(other.settle())).outcome is Outcome.SETTLED
    assert await store.balances(call.org, call.keys, now_ms()) == (Balance(1400), Balance(140))


async def test_scripts_unknown_to_the_node_that_a_slot_is_moved_to_are_sent_there(
    cluster: Cluster, store: RedisStore
) -> None:
    call = Call()
    await store.reserve(call.reserve(lease_ms=DAY_MS))
    slot = slot_of(call.org)
    source, target = await moved_half_way(cluster, slot)

    with cluster.moving(slot, source, target):
        for key in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        target.ask("SCRIPT", "FLUSH")
        assert (await store.settle(call.settle())).outcome is Outcome.SETTLED


async def test_a_reserve_whose_keys_lie_on_two_nodes_is_refused_within_its_deadline(
    cluster: Cluster, store: RedisStore
) -> None:
    call = Call()
    await store.reserve(call.reserve(lease_ms=DAY_MS))
    slot = slot_of(call.org)
    source, target = await moved_half_way(cluster, slot)
    impatient = RedisStore.from_url(cluster.url, command_timeout_s=0.3)

    with cluster.moving(slot, source, target):
        with pytest.raises(StoreUnavailableError):
            await impatient.reserve(call.sibling().reserve())
        await impatient.close()

    assert await store.open_reservations(call.org) == 1
    assert isinstance(await store.reserve(call.sibling().reserve()), Reserved)


async def test_a_batch_goes_to_every_node_and_comes_back_in_order(
    cluster: Cluster, store: RedisStore
) -> None:
    calls = [Call() for _ in range(60)]
    assert len({cluster.owner(slot_of(call.org)).port for call in calls}) == 3
    await asyncio.gather(*(store.reserve(call.reserve()) for call in calls))

    endings = await store.settle_many([call.settle() for call in calls])

    assert endings == [Ending(call.id, Outcome.SETTLED, (700, 70)) for call in calls]


async def test_a_frozen_node_takes_no_other_with_it() -> None:
    with Cluster() as cluster:
        # Long enough for those that are alive on a busy machine.
        store = RedisStore.from_url(cluster.url, command_timeout_s=3)
        calls = [Call() for _ in range(30)]
        await asyncio.gather(*(store.reserve(call.reserve()) for call in calls))
        frozen = cluster.owner(slot_of(calls[0].org))
        here = [cluster.owner(slot_of(call.org)) is frozen for call in calls]

        frozen.freeze()
        endings = await store.settle_many([call.settle() for call in calls])
        frozen.thaw()

        assert [isinstance(ending, StoreUnavailableError) for ending in endings] == here
        await store.close()


async def test_every_node_of_a_cluster_must_keep_what_it_is_told(
    cluster: Cluster, store: RedisStore
) -> None:
    await store.check_ready()
    cluster.nodes[2].ask("CONFIG", "SET", "appendfsync", "everysec")

    try:
        with pytest.raises(StoreError, match=f"{cluster.nodes[2].place} has appendfsync everysec"):
            await store.check_ready()
    finally:
        cluster.nodes[2].ask("CONFIG", "SET", "appendfsync", "always")


async def test_a_cluster_or_primary_that_nobody_knows_is_unavailable_and_says_who_was_asked() -> (
    None
):
    for url in ("redis+cluster://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/ledger"):
        store = RedisStore.from_url(url, command_timeout_s=0.5)
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1"):
            await store.reserve(Call().reserve())
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1"):
            await store.check_ready()
        await store.close()


async def test_a_name_that_no_sentinel_knows_is_told(sentinels: Sentinels) -> None:
    store = RedisStore.from_url(sentinels.url.replace("/ledger", "/leger"))

    with pytest.raises(StoreUnavailableError, match="'leger'"):
        await store.reserve(Call().reserve())

    await store.close()


@pytest.fixture
def own_sentinels() -> Iterator[Sentinels]:
    with Sentinels() as servers:
        yield servers


async def test_a_fail_over_under_load_grants_nothing_blind_and_keeps_what_was_replicated(
    own_sentinels: Sentinels,
) -> None:
    servers = own_sentinels
    store = RedisStore.from_url(servers.url)
    before = Call()
    await store.reserve(before.reserve(lease_ms=DAY_MS))
    until(servers.is_in_sync)
    async with Load(store) as load:
        servers.primary.kill()
        await load.until_refused(8)
        told = len(load.held), len(load.settled)
        while (now := (len(load.held), len(load.settled))) and await asyncio.to_thread(
            demoted, servers.replica
        ):
            assert now == told  # it is still a replica: nobody can have answered
        await load.until_settled(20)

    assert load.refusals
    assert store.primary_changes == 1
    # The last of the Sentinels may hear of it after the store has.
    await asyncio.to_thread(until, lambda: servers.named() == {servers.replica.port})
    assert (await store.settle(before.settle())).outcome is Outcome.SETTLED
    # What was settled is there, but for what was on its way to the replica.
    spent = (await store.balances(load.first.org, load.first.keys, now_ms()))[0].spent
    assert 700 * (len(load.settled) - 8) <= spent <= 700 * len(load.settled)
    await store.check_ready()

    servers.primary.start()  # it comes back as a primary: no Sentinel has demoted it yet
    last = load.first.sibling()
    await store.reserve(last.reserve(limit=10**12))
    with contextlib.closing(servers.replica.client()) as client:
        assert client.zscore(f"{org_prefix(last.org)}leases", last.id) is not None
    assert store.primary_changes == 1
    await store.close()


def demoted(node: Node) -> bool:
    with contextlib.closing(node.client()) as client:
        return bool(client.info("replication")["role"] == "slave")


async def test_a_demoted_primary_is_not_even_read(sentinels: Sentinels) -> None:
    servers = sentinels
    store = RedisStore.from_url(servers.url)
    call = Call()
    await store.reserve(call.reserve(lease_ms=DAY_MS))
    until(servers.is_in_sync)

    await asyncio.to_thread(until, servers.has_failed_over)
    await asyncio.to_thread(until, lambda: demoted(servers.primary))
    ending = await store.settle(call.settle())

    assert ending.outcome is Outcome.SETTLED
    assert await store.balances(call.org, call.keys, now_ms()) == (Balance(700), Balance(70))
    assert store.primary_changes == 1
    with contextlib.closing(servers.replica.client()) as client:
        assert client.hget(call.keys[0], "spent") == "700"
    await store.close()
    servers.primary, servers.replica = servers.replica, servers.primary
    until(servers.is_in_sync)


async def test_a_reserve_that_no_replica_has_is_not_granted(sentinels: Sentinels) -> None:
    servers = sentinels
    store = RedisStore.from_url(servers.url, wait_replicas=1)
    call = Call()
    assert isinstance(await store.reserve(call.reserve()), Reserved)
    servers.replica.freeze()
    late = call.sibling()

    with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
        await store.reserve(late.reserve())
    # That its own replicas have it, a repeat cannot know.
    with pytest.raises(StoreUnavailableError, match="repeated"):
        await store.reserve(late.reserve())

    servers.replica.thaw()
    await store.release(late.release())
    assert (await store.balances(call.org, call.keys, now_ms()))[0] == Balance(0, 1000)
    await store.close()


async def test_a_primary_with_replicas_that_writes_without_them_is_advised_of(
    sentinels: Sentinels, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisStore.from_url(sentinels.url)

    await store.check_ready()
    await store.check_ready()

    assert caplog.text.count("CONFIG SET min-replicas-to-write 1") == 1
    await store.close()


def test_a_url_of_sentinels_tells_their_users_from_those_of_the_store() -> None:
    url = StoreUrl.parse(
        "rediss+sentinel://u:p%40@a,[::1]:7/main/2?sentinel_password=s%2F&ssl_ca_certs=ca.pem"
    )

    assert url.seeds == (Address("a", 26379), Address("::1", 7))
    assert url.primary_name == "main"
    assert url.of_server(Address("b", 1)) == "rediss://u:p%40@b:1/2?ssl_ca_certs=ca.pem"
    assert url.of_sentinel(url.seeds[1]) == "rediss://:s%2F@[::1]:7?ssl_ca_certs=ca.pem"
