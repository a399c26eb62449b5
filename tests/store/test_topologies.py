"""Slots that move, primaries that fall, under load: nothing counted twice or granted blind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from clusters import Cluster, Sentinels, slot_of
from ledger_calls import DAY_MS, Call, now_ms
from ledger_load import LedgerLoad, once_each
from nodes import Node

from extauthz.ledger import (
    Balance,
    Charge,
    ClockSkewError,
    Ending,
    Hold,
    Outcome,
    Reserve,
    Reserved,
    Settle,
    State,
)
from extauthz.store.base import StoreError, StoreUnavailableError, rolling_counter_key
from extauthz.store.redis import RedisStore
from extauthz.store.url import Address, StoreUrl


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
    async with LedgerLoad(store) as load:
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


async def test_a_rolling_counter_that_has_only_old_buckets_ends_no_script_half_way(
    cluster: Cluster, store: RedisStore
) -> None:
    """It was lost, and made anew by a late cost alone: what is old goes, and with it the key."""
    call = Call()
    key, at_ms = rolling_counter_key(call.org, "agent/bot/rolling/usd", DAY_MS), now_ms()
    hold = Hold(key, 1000, 10_000, at_ms + DAY_MS)
    await store.reserve(Reserve(call.id, call.org, at_ms, at_ms - 1, (hold,)))
    await store.expire(call.org, now_ms(), DAY_MS, 1)
    await store.reserve(call.sibling().reserve(lease_ms=DAY_MS))  # so that there are leases
    slot = slot_of(call.org)
    source, target = await moved_half_way(cluster, slot)
    source.ask("DEL", key)
    source.ask("HSET", key, "1", "1000")  # a bucket of 1970
    source.ask("PEXPIREAT", key, at_ms + 2 * DAY_MS)

    with cluster.moving(slot, source, target):
        at_ms = now_ms()
        charge = Charge(key, 1000, at_ms + DAY_MS)
        ending = await store.settle(Settle(call.id, call.org, at_ms, at_ms, DAY_MS, (charge,)))

    assert ending.outcome is Outcome.LATE
    assert (await store.reservations(call.org, [call.id]))[call.id].state is State.SETTLED


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


async def reserved(store: RedisStore, call: Call) -> None:
    """On a busy machine a command may queue for longer than the store allows: then again."""
    while True:
        with contextlib.suppress(ClockSkewError):
            assert isinstance(await store.reserve(call.reserve()), Reserved)
            return


async def test_a_frozen_node_takes_no_other_with_it() -> None:
    with Cluster() as cluster:
        # Long enough for those that are alive on a busy machine.
        store = RedisStore.from_url(cluster.url, command_timeout_s=3)
        calls = [Call() for _ in range(30)]
        await asyncio.gather(*(reserved(store, call) for call in calls))
        frozen = cluster.owner(slot_of(calls[0].org))
        here = [cluster.owner(slot_of(call.org)) is frozen for call in calls]

        just_started = RedisStore.from_url(cluster.url, command_timeout_s=3)

        frozen.freeze()
        for each in (store, just_started):
            endings = await each.settle_many([call.settle() for call in calls])
            while any(isinstance(ending, ClockSkewError) for ending in endings):  # it is busy
                endings = await each.settle_many([call.settle() for call in calls])
            assert [isinstance(ending, StoreUnavailableError) for ending in endings] == here
            await each.close()
        frozen.thaw()


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
