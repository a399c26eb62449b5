"""Two versions of the program share a store during a roll-out, each running scripts of its own."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from ledger_calls import DAY_MS, STARTS, TABLE, Call, Row, event, is_as_expected, now_ms, tell
from servers import Server

from extauthz.ledger import Balance, ClockSkewError, Outcome, Refused, Reserved
from extauthz.store import script
from extauthz.store.base import StoreError
from extauthz.store.connections import Connections
from extauthz.store.courier import Courier
from extauthz.store.redis import RedisStore
from extauthz.store.topology import Standalone

OF_ANOTHER = "\n-- the text of another version"


class OtherVersion(Courier):
    """Runs scripts that say the same in another text, so by another hash."""

    async def run(self, calls: Sequence[script.Call]) -> list[list[str] | StoreError]:
        return await super().run([replace(call, script=other(call.script)) for call in calls])

    async def run_one(self, call: script.Call) -> list[str] | Exception:
        return await super().run_one(replace(call, script=other(call.script)))


def other(known: script.Script) -> script.Script:
    if known.text.endswith(OF_ANOTHER):
        return known
    changed = script.Script(f"{known.text}{OF_ANOTHER}")
    assert changed.sha != known.sha
    return changed


@pytest.fixture
async def versions(any_server: Server) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """This version and another, on each real server in turn."""
    topology = Standalone(Connections(any_server.url, command_timeout_s=5, size=8))
    mine = RedisStore.from_url(any_server.url, command_timeout_s=5)
    theirs = RedisStore(OtherVersion(topology, command_timeout_s=5))
    yield mine, theirs
    await mine.close()
    await theirs.close()


@pytest.mark.parametrize("first", [0, 1], ids=["mine first", "theirs first"])
@pytest.mark.parametrize("row", TABLE, ids=str)
async def test_whichever_version_began_a_reservation_the_other_goes_on_with_it(
    versions: tuple[RedisStore, RedisStore], any_server: Server, row: Row, first: int
) -> None:
    call, client = Call(), any_server.client()
    await versions[0].reserve(call.sibling().reserve(lease_ms=DAY_MS))  # so the counters are known
    steps = [event(call, name) for name in STARTS[row.start]]
    for at, step in enumerate(steps):
        await tell(versions[(first + at) % 2], step)
        client.script_flush()
    before = await versions[0].balances(call.org, call.keys, now_ms())

    answer = await tell(versions[(first + len(steps)) % 2], event(call, row.event))

    assert is_as_expected(row, answer), answer
    after = await versions[1].balances(call.org, call.keys, now_ms())
    changes = [(b.spent - a.spent, b.held - a.held) for a, b in zip(before, after, strict=True)]
    assert changes == [(row.spent, row.held), (row.spent // 10, row.held // 10)]
    client.close()


async def test_two_versions_at_once_pass_no_limit_and_count_each_call_once(
    versions: tuple[RedisStore, RedisStore], any_server: Server
) -> None:
    client, first = any_server.client(), Call()
    calls = [first.sibling() for _ in range(60)]
    admitted: list[Call] = []

    async def begin(at: int, call: Call) -> None:
        answer = await versions[at % 2].reserve(call.reserve(limit=25_000, lease_ms=DAY_MS))
        assert isinstance(answer, Reserved | Refused), answer
        if isinstance(answer, Reserved):
            admitted.append(call)

    async def end(at: int, call: Call) -> Outcome:
        while True:
            try:
                return (await versions[at % 2].settle(call.settle())).outcome
            except ClockSkewError:  # it queued for longer than the store allows
                continue

    async def flush() -> None:
        for _ in range(20):
            await asyncio.to_thread(client.script_flush)

    flushing = asyncio.create_task(flush())
    await asyncio.gather(*(begin(at, call) for at, call in enumerate(calls)))
    assert len(admitted) == 25
    # Both versions settle each: the one is answered settled, the other duplicate.
    twice = [end(at, call) for at in (0, 1) for call in admitted]
    outcomes = await asyncio.gather(*twice)
    await flushing

    assert sorted(outcomes) == sorted([Outcome.SETTLED, Outcome.DUPLICATE] * 25)
    assert await versions[0].balances(first.org, first.keys, now_ms()) == (
        Balance(25 * 700),
        Balance(25 * 70),
    )
    assert await versions[1].open_reservations(first.org) == 0
    of_mine, of_theirs = [await version.rows(first.org, 0, 1000) for version in versions]
    assert of_mine == of_theirs
    assert [row.seq for row in of_theirs] == list(range(1, 27)), "the opening, and each call's end"
    assert {row.id for row in of_theirs[1:]} == {call.id for call in admitted}
    client.close()


@pytest.mark.parametrize("name", ["settle", "release", "expire", "renew"])
async def test_what_a_later_version_has_added_to_a_record_disturbs_no_earlier_one(
    versions: tuple[RedisStore, RedisStore], any_server: Server, name: str
) -> None:
    mine, theirs = versions
    call, client = Call(), any_server.client()
    key = f"xa1:{{{call.org}}}:r:{call.id}"
    await theirs.reserve(call.reserve())
    client.hset(key, mapping={"of_a_later_version": "1", "z1": "2"})

    stored = (await mine.reservations(call.org, [call.id]))[call.id]
    assert stored.keys == call.keys
    answer = await tell(mine, event(call, name))

    row = next(row for row in TABLE if (row.start, row.event) == ("held", name))
    assert is_as_expected(row, answer)
    assert (name == "renew") == client.hexists(key, "z1"), "an ending keeps what it knows, only"
    client.close()
