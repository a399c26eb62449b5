"""The connection that many commands share: in order, bounded in time, and none left unanswered."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fake_store import FakeServer, array
from ledger_calls import Call, now_ms
from servers import Server

from extauthz.ledger import Balance, Reserved
from extauthz.store import lane
from extauthz.store.base import StoreUnavailableError
from extauthz.store.codec import OPENING_ID
from extauthz.store.connections import Connections
from extauthz.store.lane import Lane
from extauthz.store.redis import RedisStore
from extauthz.store.script import RESERVE
from extauthz.store.script import Call as Script
from extauthz.store.sentinel import SentinelTopology, _Told
from extauthz.store.url import Address, StoreUrl


def id_in(words: list[str]) -> str:
    return words[3 + int(words[2])]


@pytest.fixture
async def shared(any_server: Server) -> AsyncIterator[tuple[Server, RedisStore]]:
    """A store whose lane is open: its scripts are known, and one more call has gone through it."""
    store = RedisStore.from_url(any_server.url, connections_max=1, command_timeout_s=5)
    call = Call()
    for one in (call, call.sibling(), call.sibling()):
        await store.reserve(one.reserve())
        await store.release(one.release())
    yield any_server, store
    await store.close()


async def test_commands_at_once_share_a_connection_and_each_gets_its_own_answer(
    shared: tuple[Server, RedisStore],
) -> None:
    server, store = shared
    client = server.client()
    connected = client.info("clients")["connected_clients"]
    first = Call()
    calls = [first, *(first.sibling() for _ in range(199))]
    answers = await asyncio.gather(*(store.reserve(c.reserve(1, limit=10**6)) for c in calls))
    assert [answer.id for answer in answers] == [call.id for call in calls]
    assert client.info("clients")["connected_clients"] == connected
    assert (await store.balances(first.org, first.keys, now_ms()))[0] == Balance(held=200)


async def test_who_stops_waiting_leaves_his_answer_to_nobody(
    shared: tuple[Server, RedisStore],
) -> None:
    _, store = shared
    first = Call()
    calls = [first, *(first.sibling() for _ in range(99))]
    tasks = [asyncio.create_task(store.reserve(c.reserve(1, limit=10**6))) for c in calls]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for at, (call, answer) in enumerate(zip(calls, answers, strict=True)):
        if at % 3:
            assert isinstance(answer, Reserved)
            assert answer.id == call.id
        else:
            assert isinstance(answer, asyncio.CancelledError)
    assert (await store.balances(first.org, first.keys, now_ms()))[0] == Balance(held=100)


async def test_a_script_that_the_server_has_forgotten_is_sent_again_as_a_text(
    shared: tuple[Server, RedisStore],
) -> None:
    server, store = shared
    server.client().script_flush()
    call = Call()
    assert isinstance(await store.reserve(call.reserve()), Reserved)
    assert (await store.balances(call.org, call.keys, now_ms()))[0].held == 1000


async def test_a_lost_connection_answers_everyone_and_the_next_command_finds_another(
    shared: tuple[Server, RedisStore],
) -> None:
    server, store = shared
    first = Call()
    route = store._courier.topology.known_route(first.org)
    assert route is not None
    shared_lane = route.connections.lane
    assert shared_lane is not None
    server.freeze()
    try:
        calls = [first, *(first.sibling() for _ in range(9))]
        tasks = [asyncio.create_task(store.reserve(call.reserve(1))) for call in calls]
        await asyncio.sleep(0)
        shared_lane._transport.abort()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        server.thaw()
    assert all(isinstance(answer, StoreUnavailableError) for answer in answers)
    assert isinstance(await store.reserve(first.sibling().reserve(1)), Reserved)


async def test_when_one_has_waited_too_long_the_younger_ones_have_their_whole_time() -> None:
    """Else a frozen store could run, when it goes on, what its caller has given up as too old."""
    gate = asyncio.Event()

    async def silent(words: list[str]) -> str:
        id_ = id_in(words)
        if id_ == OPENING_ID:
            return array(OPENING_ID, "open")
        if id_ == late.id:
            await gate.wait()
        return array(id_, "reserved", *("0", "0", "10000") * 2)

    first = Call()
    late, young = first.sibling(), first.sibling()
    async with FakeServer(silent) as server:
        store = RedisStore.from_url(server.url, command_timeout_s=0.6)
        await store.reserve(first.reserve())
        route = store._courier.topology.known_route(first.org)
        assert route is not None
        if route.connections.lane is None:
            await route.connections._open_lane()
        oldest = asyncio.create_task(store.reserve(late.reserve()))
        await asyncio.sleep(0.4)
        younger = asyncio.create_task(store.reserve(young.reserve()))
        with pytest.raises(StoreUnavailableError, match="did not answer within"):
            await oldest
        assert not younger.done()
        gate.set()
        assert (await younger).id == young.id
        await store.close()


async def test_a_reply_out_of_step_is_nobodys_and_those_behind_it_get_none() -> None:
    order: list[str] = []

    async def swap(words: list[str]) -> str:
        id_ = id_in(words)
        if id_ == OPENING_ID:
            return array(OPENING_ID, "open")
        order.append(id_)
        told = order[-1] if len(order) < 6 else "another"
        return array(told, "reserved", *("0", "0", "10000") * 2)

    async with FakeServer(swap) as server:
        store = RedisStore.from_url(server.url, command_timeout_s=5)
        first = Call()
        for _ in range(3):
            await store.reserve(first.sibling().reserve())
        answers = await asyncio.gather(
            *(store.reserve(first.sibling().reserve()) for _ in range(6)), return_exceptions=True
        )
        kinds = [type(answer) for answer in answers]
        assert kinds == [Reserved] * 2 + [StoreUnavailableError] * 4
        await store.close()


async def test_beyond_what_the_lane_takes_others_are_served_one_after_the_other(
    shared: tuple[Server, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = shared
    first = Call()
    await store.reserve(first.reserve(1, limit=10**6))  # its books are open
    monkeypatch.setattr(lane, "UNDER_WAY_MAX", 4)
    calls = [first.sibling() for _ in range(40)]
    answers = await asyncio.gather(*(store.reserve(c.reserve(1, limit=10**6)) for c in calls))
    assert all(isinstance(answer, Reserved) for answer in answers)


async def lane_of(server: FakeServer) -> tuple[Connections, Lane]:
    connections = Connections(server.url, command_timeout_s=5, size=1)
    await connections._open_lane()
    shared = connections.lane
    assert shared is not None
    return connections, shared


ASKED = Script(RESERVE, "acme", ("key",), ("id",))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("-LOADING Redis is loading the dataset in memory", "still reading its data from disk"),
        ("-NOAUTH Authentication required.", "wants another user or password"),
    ],
)
async def test_a_server_that_serves_nobody_is_told_of_by_its_own_words(
    said: str, told: str
) -> None:
    async def refuse(words: list[str]) -> str:
        return f"{said}\r\n"

    async with FakeServer(refuse) as server:
        connections, shared = await lane_of(server)
        answers = await asyncio.gather(shared.ask(ASKED), shared.ask(ASKED))
        for answer in answers:
            assert isinstance(answer, StoreUnavailableError)
            assert told in str(answer)
        assert shared.is_lost
        await connections.close()


async def test_a_new_primary_is_told_of_at_once_while_the_old_one_is_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def freeze(words: list[str]) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    url = StoreUrl.parse("redis+sentinel://127.0.0.1:1/primary")
    topology = SentinelTopology(url, command_timeout_s=5, size=1)

    async def ask(_sentinel: Connections) -> _Told:
        return _Told(1, Address("127.0.0.1", 2))

    monkeypatch.setattr(topology, "_ask", ask)
    async with FakeServer(freeze) as server:
        old, shared = await lane_of(server)
        topology._primary, topology._address = old, Address("127.0.0.1", 1)
        answer = shared.ask(ASKED)
        async with asyncio.timeout(1):
            assert (await topology.route("acme")).connections is not old
        assert topology.primary_changes == 1
        assert topology.known_route("acme") is not None
        assert not answer.done()
        shared._transport.abort()
        assert isinstance(await answer, StoreUnavailableError)
        await topology.close()
        assert not topology._retired._closing
