"""What is asked in one turn of the event loop goes to the store together, and comes back apart."""

import asyncio
from dataclasses import replace

from ledger_calls import Call
from servers import Server

from extauthz.ledger import Reserved
from extauthz.store.redis import RedisStore


async def opened(server: Server, org: str) -> RedisStore:
    """A store whose books are open: what comes first opens them, alone."""
    store = RedisStore.from_url(server.url, command_timeout_s=30)
    await store.reserve(Call(org=org).reserve())
    return store


async def test_many_at_once_share_one_round_trip_and_each_gets_its_own_answer(
    own_valkey: Server,
) -> None:
    store = await opened(own_valkey, "many")
    client = own_valkey.client()
    connections_before = client.info("stats")["total_connections_received"]
    calls = [Call(org="many") for _ in range(50)]

    answers = await asyncio.gather(*(store.reserve(call.reserve()) for call in calls))

    assert [answer.id for answer in answers] == [call.id for call in calls]
    assert client.info("stats")["total_connections_received"] == connections_before
    client.close()
    await store.close()


async def test_who_leaves_takes_nobodys_answer_along_and_his_own_is_carried_out(
    own_valkey: Server,
) -> None:
    store = await opened(own_valkey, "leaver")
    calls = [Call(org="leaver") for _ in range(3)]
    asked = [asyncio.create_task(store.reserve(call.reserve())) for call in calls]
    await asyncio.sleep(0)  # asked, and not yet sent

    asked[1].cancel()

    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert [answers[at].id for at in (0, 2)] == [calls[at].id for at in (0, 2)]  # type: ignore[union-attr]
    assert await store.open_reservations("leaver") == 4
    await store.close()


async def test_words_that_cannot_be_sent_fail_their_own_call_only(own_valkey: Server) -> None:
    store = await opened(own_valkey, "words")
    good, bad = Call(org="words"), Call(org="words")

    answers = await asyncio.gather(
        store.reserve(replace(bad.reserve(), particulars="\ud800")),
        store.reserve(good.reserve()),
        return_exceptions=True,
    )

    assert isinstance(answers[0], UnicodeEncodeError)
    assert isinstance(answers[1], Reserved)
    assert answers[1].id == good.id
    await store.close()


async def test_a_store_that_closes_waits_for_what_was_asked_just_now(own_valkey: Server) -> None:
    store = await opened(own_valkey, "closing")
    asked = asyncio.create_task(store.reserve(Call(org="closing").reserve()))
    await asyncio.sleep(0)

    await store.close()

    assert isinstance(await asked, Reserved)
