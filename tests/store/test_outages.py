"""A store that is frozen, killed, full, busy or a replica: nothing is granted, nothing is lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import redis
from ledger_calls import DAY_MS, Call, now_ms
from servers import Server, debian_redis, until

from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
    AlreadyEnded,
    Balance,
    ClockSkewError,
    Ending,
    Outcome,
    Reserved,
    State,
)
from extauthz.store.base import StoreUnavailableError
from extauthz.store.redis import RedisStore

NOTHING = (Balance(), Balance())


@pytest.fixture
async def store(own_valkey: Server) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(own_valkey.url, command_timeout_s=0.5)
    yield store
    await store.close()


async def reserve_at_a_frozen_server(server: Server, store: RedisStore, call: Call) -> None:
    known = call.sibling()  # connections are there, the books are open, the scripts are known
    await store.reserve(known.reserve())
    await store.release(known.release())
    server.freeze()
    with pytest.raises(StoreUnavailableError, match="did not answer within"):
        await store.reserve(call.reserve())


async def test_a_reserve_that_timed_out_and_is_released_after_a_short_freeze_holds_nothing(
    own_valkey: Server, store: RedisStore
) -> None:
    call = Call()
    await reserve_at_a_frozen_server(own_valkey, store, call)

    own_valkey.thaw()
    await store.release(call.release())

    assert await store.balances(call.org, call.keys, now_ms()) == NOTHING
    assert await store.reserve(call.reserve()) == AlreadyEnded(call.id, State.RELEASED)


async def test_releasing_until_it_is_acknowledged_leaves_nothing_held_whenever_the_thaw_comes(
    own_valkey: Server, store: RedisStore
) -> None:
    call = Call()
    await reserve_at_a_frozen_server(own_valkey, store, call)
    with pytest.raises(StoreUnavailableError):
        await store.release(call.release())

    asyncio.get_running_loop().call_later(0.3, own_valkey.thaw)
    await until_acknowledged(store, call)

    # The reserve may have come before the release or be refused after it.
    assert await store.balances(call.org, call.keys, now_ms()) == NOTHING
    assert await store.reserve(call.reserve()) == AlreadyEnded(call.id, State.RELEASED)


async def until_acknowledged(store: RedisStore, call: Call) -> None:
    """Release as the service does: one that got no answer may not even have been sent."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await store.release(call.release())
                return


async def test_a_reserve_that_lay_in_a_frozen_server_for_over_a_second_is_refused(
    own_valkey: Server, store: RedisStore
) -> None:
    call = Call()
    await reserve_at_a_frozen_server(own_valkey, store, call)
    sent_before_ms = now_ms()

    until(lambda: now_ms() > sent_before_ms + CLOCK_SKEW_MS_MAX)
    own_valkey.thaw()

    # The connection that all share was closed by us, one of the others and this one are left: once
    # the server has seen that, it has read what was sent.
    client = own_valkey.client()
    until(lambda: client.info("clients")["connected_clients"] == 2)
    client.close()
    assert await store.open_reservations(call.org) == 0
    assert await store.balances(call.org, call.keys, now_ms()) == NOTHING


async def test_after_a_freeze_every_caller_gets_its_own_answer(
    own_valkey: Server, store: RedisStore
) -> None:
    await reserve_at_a_frozen_server(own_valkey, store, Call())
    own_valkey.thaw()

    async def answered(call: Call) -> str:
        while True:
            with contextlib.suppress(StoreUnavailableError, ClockSkewError):  # it is busy
                return (await store.reserve(call.reserve())).id

    calls = [Call() for _ in range(100)]
    ids = await asyncio.gather(*(answered(call) for call in calls))

    assert ids == [call.id for call in calls]


async def test_a_killed_store_is_unavailable_and_serves_again_once_it_is_back(
    own_valkey: Server, store: RedisStore
) -> None:
    call = Call()
    await store.reserve(call.reserve())
    own_valkey.kill()

    with pytest.raises(StoreUnavailableError, match=str(own_valkey.socket)):
        await store.settle(call.settle())
    with pytest.raises(StoreUnavailableError):
        await store.balances(call.org, call.keys, now_ms())
    (error,) = await store.settle_many([call.settle()])
    assert isinstance(error, StoreUnavailableError)

    own_valkey.start()
    assert (await store.settle(call.settle())).outcome is Outcome.SETTLED


@pytest.mark.parametrize("binary", [None, debian_redis()], ids=["valkey", "redis"])
async def test_every_acknowledged_reservation_outlives_a_crash(binary: str | None) -> None:
    with Server(binary) as server:
        store = RedisStore.from_url(server.url)
        first = Call()
        acknowledged: list[Call] = []

        async def reserve_until_it_fails() -> None:
            while True:
                call = first.sibling()
                try:
                    await store.reserve(call.reserve(10, limit=10**9, lease_ms=DAY_MS))
                except StoreUnavailableError:
                    return
                acknowledged.append(call)

        workers = [asyncio.create_task(reserve_until_it_fails()) for _ in range(20)]
        while len(acknowledged) < 300:
            await asyncio.wait(workers, timeout=0.001)
        server.kill()
        await asyncio.gather(*workers)

        server.start()
        held = await store.open_reservations(first.org)
        assert len(acknowledged) <= held <= len(acknowledged) + len(workers)
        assert await store.balances(first.org, first.keys, now_ms()) == (
            Balance(held=10 * held),
            Balance(held=held),
        )
        for call in acknowledged:
            answer = await store.release(call.release())
            assert answer == Ending(call.id, Outcome.RELEASED, (0, 0))
        await store.close()


async def test_a_log_that_a_crash_cut_short_is_read_up_to_the_cut(own_valkey: Server) -> None:
    store = RedisStore.from_url(own_valkey.url)
    calls = [first := Call(), first.sibling(), first.sibling()]
    for call in calls:
        await store.reserve(call.reserve())
    await store.close()
    own_valkey.kill()
    (log,) = own_valkey.dir.glob("appendonlydir/*.incr.aof")
    log.write_bytes(log.read_bytes()[:-30])

    own_valkey.start()
    store = RedisStore.from_url(own_valkey.url)

    # The cut went through the third reservation: it is gone as a whole.
    assert await store.open_reservations(first.org) == 2
    assert await store.balances(first.org, first.keys, now_ms()) == (
        Balance(held=2000),
        Balance(held=200),
    )
    await store.close()


async def test_a_full_store_refuses_reservations_and_still_takes_their_endings(
    own_valkey: Server, store: RedisStore
) -> None:
    calls = [first := Call(), first.sibling(), first.sibling(), first.sibling()]
    for call in calls:
        await store.reserve(call.reserve())
    client = own_valkey.client()
    client.config_set("maxmemory", "1")
    client.close()
    before = await store.balances(first.org, first.keys, now_ms())

    with pytest.raises(StoreUnavailableError, match="its memory is full"):
        await store.reserve(first.sibling().reserve())
    assert await store.balances(first.org, first.keys, now_ms()) == before

    just_started = RedisStore.from_url(own_valkey.url, command_timeout_s=10)
    assert (await just_started.settle(calls[0].settle())).outcome is Outcome.SETTLED
    await just_started.close()
    assert (await store.release(calls[1].release())).outcome is Outcome.RELEASED
    assert await store.renew(calls[2].renew(lease_ms=DAY_MS))
    (ending,) = await store.expire(first.org, now_ms(), DAY_MS, 10)
    assert ending.id == calls[3].id


async def test_a_replica_refuses_and_says_what_to_do(own_valkey: Server, store: RedisStore) -> None:
    client = own_valkey.client()
    client.config_set("replica-serve-stale-data", "yes")
    client.replicaof("127.0.0.1", "1")
    client.close()

    with pytest.raises(StoreUnavailableError, match=r"store\.url has to name the primary"):
        await store.reserve(Call().reserve())


async def test_a_store_held_up_by_a_script_refuses_and_says_what_to_do(
    own_valkey: Server,
) -> None:
    store = RedisStore.from_url(own_valkey.url, command_timeout_s=5)
    call = Call()
    await store.reserve(call.reserve())
    client = own_valkey.client()
    client.config_set("busy-reply-threshold", "10")
    endless = asyncio.create_task(asyncio.to_thread(run_for_ever, own_valkey))

    with pytest.raises(StoreUnavailableError, match="SCRIPT KILL"):
        await keep_asking(store, call.org)
    with pytest.raises(StoreUnavailableError, match="SCRIPT KILL"):
        await store.settle(call.settle())

    client.script_kill()
    await endless
    client.close()
    assert (await store.settle(call.settle())).outcome is Outcome.SETTLED
    await store.close()


async def keep_asking(store: RedisStore, org: str) -> None:
    async with asyncio.timeout(20):
        while True:
            await store.open_reservations(org)


def run_for_ever(server: Server) -> None:
    client = server.client()
    with pytest.raises(redis.ResponseError, match="killed"):
        client.eval("while true do end", 0)
    client.close()


async def test_a_wrong_password_is_told_without_telling_it(own_valkey: Server) -> None:
    url = own_valkey.url.replace("unix://", "unix://somebody@") + "?password=secret-word"
    store = RedisStore.from_url(url)

    with pytest.raises(StoreUnavailableError, match="another user or password") as raised:
        await store.reserve(Call().reserve())

    assert "secret-word" not in str(raised.value)
    await store.close()


async def test_where_nobody_listens_the_store_is_unavailable_and_its_place_is_told() -> None:
    store = RedisStore.from_url("redis://127.0.0.1:1")

    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1"):
        await store.reserve(Call().reserve())

    await store.close()


async def test_a_reservation_that_was_admitted_survives_a_restart_with_its_lease(
    own_valkey: Server, store: RedisStore
) -> None:
    call = Call()
    assert isinstance(await store.reserve(call.reserve(lease_ms=-1500)), Reserved)
    own_valkey.kill()
    own_valkey.start()
    await asyncio.sleep(0)  # the loop has to see that the old connection is gone

    (ending,) = await store.expire(call.org, now_ms(), DAY_MS, 10)

    assert ending == Ending(call.id, Outcome.EXPIRED, (1000, 100))
