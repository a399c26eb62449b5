"""A server that still reads its data from disk refuses; nothing is lost by that, or done twice."""

import asyncio
from collections.abc import Iterator

import pytest
import redis
from ledger_calls import DAY_MS, Call, now_ms
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import Server, debian_redis, until

from extauthz.ledger import Balance, ClockSkewError, Ending, Outcome, Reserved
from extauthz.store.base import StoreError, StoreUnavailableError
from extauthz.store.redis import RedisStore

_ENTRIES = 30_000
"""It answers while it reads after every 1,024th of them, and with the delay reads for 5 s."""
_SLOWLY = ("--key-load-delay", "50")


@pytest.fixture(params=[None, debian_redis()], ids=["valkey", "redis"])
def slow_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(request.param, *_SLOWLY) as server:
        client = server.client()
        with client.pipeline(transaction=False) as pipe:
            for n in range(_ENTRIES):
                pipe.set("something-to-read", n)
            pipe.execute()
        client.close()
        yield server


def is_loading(server: Server) -> bool:
    client = server.client()
    client.set_retry(Retry(NoBackoff(), 0))
    try:
        client.ping()
    except redis.BusyLoadingError:
        return True
    except redis.ConnectionError:
        return False
    finally:
        client.close()
    return False


async def until_answered(store: RedisStore, call: Call, told: list[Exception]) -> Ending:
    """Settle as the spool does."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await store.settle(call.settle())
            except (StoreUnavailableError, ClockSkewError) as error:
                told.append(error)
                await asyncio.sleep(0.05)


async def test_while_a_store_loads_it_refuses_and_then_every_call_is_settled_once(
    slow_server: Server,
) -> None:
    store = RedisStore.from_url(slow_server.url, command_timeout_s=5)
    first = Call()
    calls = [first, *(first.sibling() for _ in range(5))]
    for call in calls:
        answer = await store.reserve(call.reserve(lease_ms=DAY_MS))
        assert isinstance(answer, Reserved)
    slow_server.kill()
    slow_server.launch()
    await asyncio.to_thread(until, lambda: is_loading(slow_server))

    with pytest.raises(StoreUnavailableError, match="still reading its data from disk; wait"):
        await store.reserve((late := first.sibling()).reserve())
    with pytest.raises(StoreError, match="still reading its data from disk; wait"):
        await store.check_ready()
    told: list[Exception] = []
    # From two sides at once, as the sink and the file log may.
    endings = await asyncio.gather(*(until_answered(store, call, told) for call in calls * 2))

    assert told, "it was loading no more"
    outcomes = sorted(ending.outcome for ending in endings)
    assert outcomes == sorted([Outcome.SETTLED, Outcome.DUPLICATE] * len(calls))
    assert await store.balances(first.org, first.keys, now_ms()) == (
        Balance(700 * len(calls)),
        Balance(70 * len(calls)),
    )
    assert await store.reservations(first.org, [late.id]) == {}, "what was refused was not done"
    await store.check_ready()
    await store.close()
