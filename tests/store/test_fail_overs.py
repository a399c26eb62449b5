"""Primaries fall and replicas take over: nothing is granted blind, and nothing counted twice."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from clusters import Cluster, Sentinels, slot_of
from ledger_calls import DAY_MS, Call, now_ms
from ledger_load import LedgerLoad, once_each
from nodes import Node
from servers import until

from extauthz.ledger import (
    Applied,
    Balance,
    Change,
    ClockSkewError,
    Outcome,
    Override,
    Reserved,
)
from extauthz.store.base import StoreUnavailableError, org_prefix
from extauthz.store.redis import RedisStore


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
    async with LedgerLoad(store) as load:
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


def pausing(call: Call) -> Override:
    at_ms = now_ms()
    return Override(call.id, call.org, at_ms, Change.PAUSE, "agent:bot", at_ms + DAY_MS)


def now(change: Override) -> Override:
    """The same, said once more."""
    return replace(change, at_ms=now_ms())


async def test_an_override_is_done_only_when_a_replica_has_it_and_so_is_its_repeat(
    sentinels: Sentinels,
) -> None:
    servers, call = sentinels, Call()
    store = RedisStore.from_url(servers.url, wait_replicas=1)
    change = pausing(call)
    servers.replica.freeze()

    with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
        await store.override(now(change))
    # Of a connection that has written nothing, WAIT believes that replicas have all of it.
    another = RedisStore.from_url(servers.url, wait_replicas=1)
    with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
        await another.override(now(change))
    await another.close()
    assert (await store.overrides(call.org, now_ms())).pauses == {"agent:bot": None}

    servers.replica.thaw()
    assert await store.override(now(change)) is Applied.DUPLICATE
    with contextlib.closing(servers.replica.client()) as client:
        assert client.hgetall(f"{org_prefix(call.org)}overrides") == {"pause:agent:bot": "@"}
        forgotten_at_ms = client.pexpiretime(f"{org_prefix(call.org)}o:{change.id}")
    assert forgotten_at_ms == change.forget_at_ms
    assert await store.override(pausing(call.sibling())) is Applied.APPLIED
    await store.close()


async def test_a_call_that_a_fail_over_lost_is_recovered_as_it_settles_and_counted_once(
    own_sentinels: Sentinels,
) -> None:
    servers = own_sentinels
    store = RedisStore.from_url(servers.url)
    known, lost = (first := Call()), first.sibling()
    await store.reserve(known.reserve(lease_ms=DAY_MS))
    until(servers.is_in_sync)
    servers.part()
    assert isinstance(await store.reserve(lost.reserve(lease_ms=DAY_MS)), Reserved)
    assert (await store.settle(known.settle())).outcome is Outcome.SETTLED

    servers.primary.kill()
    await asyncio.to_thread(until, lambda: not demoted(servers.replica))
    endings = [await settled(store, call) for call in (lost, known, lost, known)]

    duplicate = Outcome.DUPLICATE
    assert endings == [Outcome.RECOVERED, Outcome.SETTLED, duplicate, duplicate]
    assert store.primary_changes == 1
    assert await store.balances(first.org, first.keys, now_ms()) == once_each([lost, known])
    assert await store.open_reservations(first.org) == 0
    await store.close()


async def settled(store: RedisStore, call: Call) -> Outcome:
    """Settle as the spool does: until it is answered."""
    async with asyncio.timeout(60):
        while True:
            try:
                return (await store.settle(call.settle())).outcome
            except (StoreUnavailableError, ClockSkewError):
                await asyncio.sleep(0.05)


async def test_a_replica_that_a_cluster_promotes_has_every_reservation_that_it_was_waited_for() -> (
    None
):
    with Cluster(replicas=2) as cluster:
        store = RedisStore.from_url(cluster.url, wait_replicas=2)
        fallen = cluster.nodes[0]
        load = LedgerLoad(store)
        while cluster.owner(slot_of(load.first.org)) is not fallen:
            load = LedgerLoad(store)
        async with load:
            fallen.kill()
            await load.until_refused(8)
            await asyncio.to_thread(until, lambda: promoted(cluster))
        # Those that were granted have all been settled, none of them as one that was lost.
        assert not {call.id for call in load.held} - {call.id for call in load.settled}
        assert load.outcomes[Outcome.RECOVERED] == 0
        assert store.primary_changes == 1

        # A settlement waits for no replica: what it was lost of is held, until it is told again.
        org, keys = load.first.org, load.first.keys
        lost = [call for call in load.settled if call.id in await store.open_ids(org)]
        assert await store.open_reservations(org) == len(lost) <= 8
        for call in lost:
            assert (await store.settle(call.settle())).outcome is Outcome.SETTLED
        assert await store.balances(org, keys, now_ms()) == once_each(load.settled)

        # One of the two replicas is left: a reserve that waits for two is refused, and one that
        # waits for one goes on.
        with pytest.raises(StoreUnavailableError, match="1 of 2 replicas"):
            await store.reserve(load.first.sibling().reserve(limit=10**12))
        other = RedisStore.from_url(cluster.url, wait_replicas=1)
        answer = await other.reserve(load.first.sibling().reserve(limit=10**12))
        assert isinstance(answer, Reserved)
        assert other.primary_changes == 0, "it has known no other"
        await other.close()
        await store.close()


def promoted(cluster: Cluster) -> bool:
    """Whether one of the replicas is a primary, and the other follows it."""
    roles = [demoted(replica) for replica in cluster.replicas]
    return sorted(roles) == [False, True]
