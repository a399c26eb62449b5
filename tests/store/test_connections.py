"""No reply ever reaches another caller, whoever gives up and whatever the server says."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from fake_store import FakeServer, array
from ledger_calls import Call, now_ms
from servers import Server

from extauthz.ledger import Balance, ClockSkewError, Reserved
from extauthz.store.base import StoreError, StoreUnavailableError
from extauthz.store.codec import OPENING_ID
from extauthz.store.redis import RedisStore

BOOKS_ARE_OPEN = array(OPENING_ID, "open")


def id_in(words: list[str]) -> str:
    """The reservation id in an EVALSHA or EVAL: the first argument after its keys."""
    return words[3 + int(words[2])]


async def admit(words: list[str]) -> str:
    return array(id_in(words), "reserved", *("0", "0", "10000") * 2)


async def test_a_reply_with_another_id_is_not_believed_and_its_connection_is_closed() -> None:
    async def lie(words: list[str]) -> str:
        return array("another-id", "reserved", *("0", "0", "10000") * 2)

    async with FakeServer(lie) as server:
        store = RedisStore.from_url(server.url)
        with pytest.raises(StoreUnavailableError, match="answered another question"):
            await store.reserve(Call().reserve())
        await server.closed.wait()
        await store.close()


@pytest.mark.parametrize("nonsense", ["+OK\r\n", ":1\r\n", "*0\r\n", "$-1\r\n"])
async def test_a_reply_of_another_kind_is_not_believed(nonsense: str) -> None:
    async def lie(words: list[str]) -> str:
        return nonsense

    async with FakeServer(lie) as server:
        store = RedisStore.from_url(server.url)
        with pytest.raises(StoreUnavailableError, match="answered another question"):
            await store.reserve(Call().reserve())
        with pytest.raises(StoreUnavailableError, match="answered another question"):
            await store.balances("org", Call(org="org").keys, now_ms())
        await store.close()


async def test_a_script_that_was_sent_again_by_its_text_has_no_answer_until_it_has_one() -> None:
    """That the server did not know it is no answer any more: it may have been executed since."""

    async def know_nothing_and_fall_silent(words: list[str]) -> str:
        if words[0] == "EVAL":
            await asyncio.Event().wait()
        return "-NOSCRIPT No matching script.\r\n"

    async with FakeServer(know_nothing_and_fall_silent) as server:
        store = RedisStore.from_url(server.url, command_timeout_s=0.2)
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.2 s"):
            await store.reserve(Call().reserve())
        await store.close()


async def test_a_reply_out_of_step_spoils_the_rest_of_its_batch_but_not_what_came_before() -> None:
    batch = [Call(org="org") for _ in range(4)]

    async def off_by_one(words: list[str]) -> str:
        if id_in(words) == OPENING_ID:
            return BOOKS_ARE_OPEN
        at = [call.id for call in batch].index(id_in(words))
        return array(batch[at if at < 2 else at - 1].id, "settled", "700 70")

    async with FakeServer(off_by_one) as server:
        store = RedisStore.from_url(server.url)
        answers = await store.settle_many([call.settle() for call in batch])
        assert [type(answer).__name__ for answer in answers] == [
            "Ending",
            "Ending",
            "StoreUnavailableError",
            "StoreUnavailableError",
        ]
        await server.closed.wait()
        await store.close()


async def test_a_reply_that_comes_too_late_is_never_read() -> None:
    gate = asyncio.Event()

    async def late_at_first(words: list[str]) -> str:
        if id_in(words) == OPENING_ID:
            return BOOKS_ARE_OPEN
        if not gate.is_set():
            await gate.wait()
        return await admit(words)

    async with FakeServer(late_at_first) as server:
        store = RedisStore.from_url(server.url, command_timeout_s=2, connections_max=1)
        late = Call()
        with pytest.raises(StoreUnavailableError, match="did not answer within 2 s"):
            await store.reserve(late.reserve())
        gate.set()
        call = late.sibling()
        assert (await store.reserve(call.reserve())).id == call.id
        await server.closed.wait()  # the one on which it came
        await store.close()


async def test_the_wait_for_a_free_connection_is_bounded_too() -> None:
    async def never(words: list[str]) -> str:
        await asyncio.Event().wait()
        return ""

    async with FakeServer(never) as server:
        store = RedisStore.from_url(server.url, command_timeout_s=0.05, connections_max=2)
        answers = await asyncio.gather(
            *(store.reserve(Call().reserve()) for _ in range(200)), return_exceptions=True
        )
        assert all(isinstance(answer, StoreUnavailableError) for answer in answers)
        assert server.opened < 20, "of 100 turns on each, one after the other, each opens anew"
        await store.close()


async def test_a_cancelled_caller_stops_waiting_and_its_command_is_still_carried_out(
    any_server: Server,
    redis_store: RedisStore,
) -> None:
    call, leaving = Call(), RedisStore.from_url(any_server.url)
    waiting = asyncio.create_task(leaving.reserve(call.reserve()))
    await asyncio.sleep(0)  # it has been handed over, nothing more

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await leaving.close()

    assert (await redis_store.balances(call.org, call.keys, now_ms()))[0] == Balance(held=1000)
    await redis_store.release(call.release())
    assert await redis_store.balances(call.org, call.keys, now_ms()) == (Balance(), Balance())


@pytest.fixture
async def small_pool(any_server: Server) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(any_server.url, connections_max=4, command_timeout_s=10)
    yield store
    await store.close()


async def give_up_at_random(store: RedisStore, count: int) -> None:
    """Cancel `count` reserves at random moments while as many others wait for theirs."""
    chance = random.Random(count)
    first = Call()
    await release(store, first)  # the books are open from here on
    calls = [first.sibling() for _ in range(count * 2)]
    tasks = [asyncio.create_task(store.reserve(call.reserve(10, limit=10**9))) for call in calls]
    await asyncio.sleep(0)  # all are handed over; four are under way at a time
    given_up = set(chance.sample(range(len(calls)), count))
    for at in sorted(given_up, key=lambda _: chance.random()):
        tasks[at].cancel()
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    for at, answer in enumerate(answers):
        if isinstance(answer, asyncio.CancelledError):
            assert at in given_up
            continue
        if isinstance(answer, ClockSkewError):  # on a busy machine it queued for over a second
            assert calls[at].id in str(answer)
            continue
        assert isinstance(answer, Reserved), answer
        assert answer.id == calls[at].id
    for few in batched(calls, 20):
        await asyncio.gather(*(release(store, call) for call in few))
    assert await store.balances(first.org, first.keys, now_ms()) == (Balance(), Balance())


async def release(store: RedisStore, call: Call) -> None:
    """On a busy machine a command may queue for longer than the store allows: then again."""
    while True:
        try:
            ending = await store.release(call.release())
        except ClockSkewError:
            continue
        assert ending.id == call.id
        return


def batched(calls: list[Call], size: int) -> list[list[Call]]:
    return [calls[at : at + size] for at in range(0, len(calls), size)]


async def test_a_thousand_callers_that_give_up_leave_no_reply_to_another(
    small_pool: RedisStore,
) -> None:
    for _ in range(10):
        await give_up_at_random(small_pool, 100)


@pytest.mark.full
@pytest.mark.timeout(900)
async def test_twenty_thousand_callers_that_give_up_leave_no_reply_to_another(
    small_pool: RedisStore,
) -> None:
    for _ in range(200):
        await give_up_at_random(small_pool, 100)


async def test_closing_waits_for_commands_under_way_and_refuses_new_ones(
    any_server: Server,
) -> None:
    store = RedisStore.from_url(any_server.url)
    call = Call()
    waiting = asyncio.create_task(store.reserve(call.reserve()))
    await asyncio.sleep(0)

    await store.close()

    assert isinstance(await waiting, Reserved)
    with pytest.raises(StoreUnavailableError, match="closed by this process"):
        await store.reserve(call.reserve())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://h:26379", "name the primary as its Sentinels do"),
        ("redis+sentinel://h:26379/ledger/first", "is no database number"),
        ("redis+sentinel://h:26379/ledger?db=1", "db cannot be set"),
        ("redis+sentinel://h:26379,:1/ledger", "':1' is not host:port"),
        ("redis+cluster://h:6379/1", "a Cluster has no databases"),
        ("redis+cluster://h:six", "'h:six' is not host:port"),
        ("redis+cluster://h?password=p", "password cannot be set"),
        ("redis+ring://h", "redis\\+sentinel:// or redis\\+cluster://"),
        ("http://h", "redis://, rediss://, unix://"),
        ("nonsense", "redis://, rediss://, unix://"),
        ("redis://h/first", "is no database number"),
        ("redis://h:port", "Port could not be cast"),
        ("redis://h?protocol=3", "protocol cannot be set"),
        ("redis://h?db=0&retry_on_timeout=yes", "retry_on_timeout cannot be set"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        RedisStore.from_url(url)
