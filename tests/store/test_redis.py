"""What the scripts leave behind in a real server, and that they touch only what they declare."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from ledger_calls import DAY_MS, STARTS, TABLE, Call, event, now_ms, tell
from servers import Server

from extauthz.ledger import (
    COUNTER_MAX,
    Change,
    CounterRangeError,
    Ending,
    Outcome,
    Override,
    Reserved,
)
from extauthz.store import script
from extauthz.store.base import StoreError
from extauthz.store.connections import Connections
from extauthz.store.courier import Courier
from extauthz.store.redis import RedisStore
from extauthz.store.topology import Standalone


async def test_a_counter_lives_as_long_as_the_longest_that_was_asked_for(
    redis_store: RedisStore, any_server: Server
) -> None:
    call, at_ms = Call(), now_ms()
    client = any_server.client()

    await redis_store.reserve(call.reserve(at_ms=at_ms, forget_in_ms=3 * DAY_MS))
    await redis_store.reserve(call.sibling().reserve(at_ms=at_ms, forget_in_ms=2 * DAY_MS))
    assert {client.pexpiretime(key) for key in call.keys} == {at_ms + 3 * DAY_MS}
    await redis_store.reserve(call.sibling().reserve(at_ms=at_ms, forget_in_ms=4 * DAY_MS))
    assert {client.pexpiretime(key) for key in call.keys} == {at_ms + 4 * DAY_MS}
    client.close()


@pytest.mark.parametrize("end", ["settle", "release", "expire"])
async def test_an_ended_reservation_shrinks_and_is_forgotten_at_the_horizon(
    redis_store: RedisStore, any_server: Server, end: str
) -> None:
    call, at_ms = Call(), now_ms()
    client = any_server.client()
    key = f"xa1:{{{call.org}}}:r:{call.id}"
    await redis_store.reserve(call.reserve(lease_ms=-1500))
    assert client.pexpiretime(key) == -1

    command = {"settle": call.settle, "release": call.release, "expire": call.expire}[end]
    await tell(redis_store, command(at_ms=at_ms, horizon_ms=DAY_MS))

    # A settlement may still come for what was not settled.
    kept = {"state", "charged", "cost"}
    kept |= set() if end == "settle" else {"k1", "k2", "f1", "f2", "p"}
    kept |= {"charged_at"} if end == "expire" else set()
    assert set(client.hkeys(key)) == kept
    assert client.pexpiretime(key) == at_ms + DAY_MS
    assert client.zcard(f"xa1:{{{call.org}}}:leases") == 0
    client.close()


@pytest.mark.parametrize("name", ["reserve", "settle", "release", "renew", "expire"])
async def test_scripts_that_the_server_has_forgotten_are_sent_again(
    redis_store: RedisStore, any_server: Server, name: str
) -> None:
    call = Call()
    await redis_store.reserve(call.reserve())
    client = any_server.client()
    client.script_flush()

    if name == "reserve":
        assert isinstance(await redis_store.reserve(call.sibling().reserve()), Reserved)
    else:
        assert await tell(redis_store, event(call, name))
    client.script_flush()
    batch = [call.sibling().settle() for _ in range(3)]
    endings = await redis_store.settle_many(batch)
    assert [e.outcome for e in endings if isinstance(e, Ending)] == [Outcome.RECOVERED] * 3
    client.close()


async def test_words_that_cannot_be_sent_fail_their_own_call_only(redis_store: RedisStore) -> None:
    good, bad = (first := Call()), first.sibling()

    answers = await redis_store.settle_many(
        [replace(bad.settle(), particulars="\ud800"), good.settle()]
    )

    assert isinstance(answers[0], UnicodeEncodeError)
    assert isinstance(answers[1], Ending)
    assert answers[1].id == good.id


@pytest.mark.parametrize("field", ["spent", "held"])
@pytest.mark.parametrize("name", ["reserve", "settle", "release", "expire"])
async def test_a_counter_out_of_range_stops_a_command_before_it_changes_anything(
    redis_store: RedisStore, any_server: Server, field: str, name: str
) -> None:
    call = Call()
    await redis_store.reserve(call.reserve())
    client = any_server.client()
    client.hset(call.keys[1], field, COUNTER_MAX)
    client.close()
    before = await redis_store.balances(call.org, call.keys, now_ms())
    shadow = call.sibling().reserve(enforcing=(True, False))

    with pytest.raises(CounterRangeError, match=r"2\*\*62"):
        await tell(redis_store, shadow if name == "reserve" else event(call, name))

    assert await redis_store.balances(call.org, call.keys, now_ms()) == before
    assert await redis_store.open_reservations(call.org) == 1


async def test_a_lease_without_its_reservation_does_not_stay_due_for_ever(
    redis_store: RedisStore, any_server: Server
) -> None:
    call, other = (first := Call()), first.sibling()
    await redis_store.reserve(call.reserve(lease_ms=-2000))
    await redis_store.reserve(other.reserve())
    client = any_server.client()
    client.delete(f"xa1:{{{call.org}}}:r:{call.id}")
    client.close()

    assert await redis_store.expire(call.org, now_ms(), DAY_MS, 1) == []

    (ending,) = await redis_store.expire(call.org, now_ms(), DAY_MS, 1)
    assert ending.id == other.id


async def test_a_lease_renewed_while_it_was_found_due_is_not_charged(
    redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Call()
    await redis_store.reserve(call.reserve())
    find_due = redis_store._due

    async def find_due_and_be_overtaken(*args: Any) -> Any:
        due = await find_due(*args)
        assert await redis_store.renew(call.renew(lease_ms=DAY_MS))
        return due

    monkeypatch.setattr(redis_store, "_due", find_due_and_be_overtaken)

    assert await redis_store.expire(call.org, now_ms(), DAY_MS, 10) == []
    assert await redis_store.open_reservations(call.org) == 1


@pytest.mark.parametrize("start", ["held", "expired"])
@pytest.mark.parametrize("name", ["settle for nothing", "release", "expire"])
async def test_a_lost_counter_never_goes_below_zero(
    redis_store: RedisStore, any_server: Server, start: str, name: str
) -> None:
    call = Call()
    for step in STARTS[start]:
        await tell(redis_store, event(call, step))
    client = any_server.client()
    client.delete(*call.keys)
    client.close()

    await tell(redis_store, event(call, name))

    for balance in await redis_store.balances(call.org, call.keys, now_ms()):
        assert balance.held == 0
        assert balance.spent >= 0


class DeclaredKeysOnly(Courier):
    """Runs every script as a user who may touch the keys that it declares, and no other."""

    def __init__(self, server: Server) -> None:
        self._admin = server.client()
        self._grant("allkeys")
        url = server.url.replace("unix://", "unix://narrow@") + "?password=p"
        connections = Connections(url, command_timeout_s=5, size=1)
        super().__init__(Standalone(connections), command_timeout_s=5)

    def _grant(self, *keys: str) -> None:
        self._admin.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">p", "+@all", *keys)

    async def run(self, calls: Sequence[script.Call]) -> list[list[str] | StoreError]:
        self._grant(*(f"~{key}" for call in calls for key in call.keys))
        answers = await super().run(calls)
        self._grant("allkeys")
        return answers


async def test_no_script_touches_a_key_that_it_does_not_declare(own_valkey: Server) -> None:
    store = RedisStore(DeclaredKeysOnly(own_valkey))
    for row in TABLE:
        call = Call()
        await store.reserve(call.sibling().reserve(lease_ms=DAY_MS))
        for name in (*STARTS[row.start], row.event):
            await tell(store, event(call, name))
    at_ms = now_ms()
    for change in Change:
        of_budget = change in (Change.SET, Change.TOP_UP, Change.UNSET)
        target = "agent/bot/day/usd" if of_budget else "agent:bot"
        key = "sha256:" + 64 * "0" if change in (Change.ADMIT, Change.REVOKE) else ""
        await store.override(
            Override(change.value, call.org, at_ms, change, target, at_ms + DAY_MS, key_hash=key)
        )
    await store.close()
