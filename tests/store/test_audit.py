"""Counters against books: every drift is found and set right, and what moves is never one."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from ledger_calls import DAY_MS, Call, now_ms
from servers import Server

from extauthz.ledger import (
    Balance,
    ClockSkewError,
    Hold,
    Reserve,
    Row,
    RowOutcome,
    Seal,
    Tally,
)
from extauthz.service.audit import Auditor
from extauthz.service.audit_reader import Audit
from extauthz.store.base import rolling_counter_key
from extauthz.store.redis import RedisStore

HOUR_MS = 3_600_000


class Everything:
    """All rows are still in the store, but for those that the test has put into `archived`."""

    def __init__(self, store: RedisStore, org: str) -> None:
        self._store, self._org = store, org
        self.archived: list[Row] = []

    def checkpoint(self) -> Tally:
        return Tally()

    async def rows(self, after_seq: int) -> AsyncIterator[Row]:
        for row in self.archived[after_seq:]:
            yield row
            after_seq = row.seq
        while rows := await self._store.rows(self._org, after_seq, 100):
            for row in rows:
                yield row
            after_seq = rows[-1].seq


@pytest.fixture
async def store(any_server: Server) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(any_server.url, command_timeout_s=10)
    yield store
    await store.close()


def auditor(store: RedisStore) -> Auditor:
    return Auditor(store.bookkeeping, store, now_ms)


async def audited(store: RedisStore, org: str) -> Audit:
    return await auditor(store).audit(org, Everything(store, org))


def with_rolling(call: Call, amount: int = 1000) -> Reserve:
    reserve = call.reserve(amount, lease_ms=DAY_MS, limit=10**9)
    key = rolling_counter_key(call.org, "rolling", HOUR_MS)
    rolling = Hold(key, amount, 10**9, reserve.at_ms + DAY_MS)
    return Reserve(
        call.id, call.org, reserve.at_ms, reserve.lease_until_ms, (*reserve.holds, rolling)
    )


async def some_calls(store: RedisStore) -> Call:
    """One settled, one released, one expired, one still open."""
    first = Call()
    settled, released, expired = first.sibling(), first.sibling(), first.sibling()
    for call in (first, settled, released):
        await store.reserve(call.reserve(lease_ms=DAY_MS))
    await store.reserve(expired.reserve(lease_ms=-1))
    await store.settle(settled.settle())
    await store.release(released.release())
    await store.expire(first.org, now_ms(), DAY_MS, 10)
    return first


async def test_what_was_only_worked_with_is_clean(store: RedisStore) -> None:
    first = await some_calls(store)

    audit = await audited(store, first.org)

    assert audit.is_clean, audit
    assert (audit.counters, audit.open, audit.last_seq) == (2, 1, 4)


@pytest.mark.parametrize(
    ("field", "amount", "what"), [("spent", 1, "spent"), ("held", -1, "held"), ("held", 5, "held")]
)
async def test_a_counter_that_somebody_changed_is_found_and_set_right(
    store: RedisStore, any_server: Server, field: str, amount: int, what: str
) -> None:
    first = await some_calls(store)
    with any_server.client() as client:
        client.hincrby(first.keys[0], field, amount)

    found = await audited(store, first.org)
    repaired, left = await auditor(store).repair(
        first.org, Everything(store, first.org), reason="it was changed by hand"
    )

    assert [(d.what, d.amount, d.key) for d in found.drifts] == [(what, amount, first.keys[0])]
    assert repaired.drifts == found.drifts
    assert left == []
    assert (await audited(store, first.org)).is_clean
    row = (await store.rows(first.org, found.last_seq, 9))[-1]
    assert row.outcome is RowOutcome.REPAIR
    assert "it was changed by hand" in row.particulars


async def test_a_counter_that_was_lost_is_found_and_made_again(
    store: RedisStore, any_server: Server
) -> None:
    first = await some_calls(store)
    before = await store.balances(first.org, first.keys, now_ms())
    with any_server.client() as client:
        client.delete(first.keys[1])

    drifts = (await audited(store, first.org)).drifts
    await auditor(store).repair(first.org, Everything(store, first.org), reason="lost")

    assert [(drift.key, drift.what) for drift in drifts] == [
        (first.keys[1], "spent"),
        (first.keys[1], "held"),
    ]
    assert await store.balances(first.org, first.keys, now_ms()) == before
    with any_server.client() as client:
        assert client.pexpiretime(first.keys[1]) > now_ms()


async def test_a_repair_of_what_is_held_lets_a_counter_be_forgotten_when_its_time_is_over(
    store: RedisStore, any_server: Server
) -> None:
    """One that outlived the books' memory of it would be a drift once they have forgotten it."""
    first = await some_calls(store)
    with any_server.client() as client:
        before = client.pexpiretime(first.keys[0])
        client.hincrby(first.keys[0], "held", 5)

        await auditor(store).repair(first.org, Everything(store, first.org), reason="x")

        assert client.pexpiretime(first.keys[0]) == before


async def test_a_lost_counter_that_only_open_calls_know_is_kept_as_long_as_they_need_it(
    store: RedisStore, any_server: Server
) -> None:
    call = Call()
    reserve = call.reserve(lease_ms=DAY_MS)
    await store.reserve(reserve)
    with any_server.client() as client:
        client.delete(call.keys[0])

        await auditor(store).repair(call.org, Everything(store, call.org), reason="lost")

        assert client.pexpiretime(call.keys[0]) == reserve.holds[0].forget_at_ms
    assert (await audited(store, call.org)).is_clean


class Between:
    """The books of a store, in which something happens between looking and the first setting."""

    def __init__(self, store: RedisStore, happening: Callable[[], Awaitable[object]]) -> None:
        self._books, self._happening = store.bookkeeping, happening
        self.counter_keys, self.cut = self._books.counter_keys, self._books.cut
        self._has_happened = False

    async def repair(self, *words: Any, **more: Any) -> bool:
        if not self._has_happened:
            self._has_happened = True
            await self._happening()
        return await self._books.repair(*words, **more)


@pytest.mark.parametrize("is_archived", [False, True], ids=["row there", "row archived"])
async def test_what_has_ended_between_looking_and_setting_is_not_held_again(
    store: RedisStore, any_server: Server, is_archived: bool
) -> None:
    """The counter was lost and shows 0 before and after: only the row of the ending tells."""
    first = Call()
    second = first.sibling()
    for call in (first, second):
        await store.reserve(call.reserve(lease_ms=DAY_MS))
    with any_server.client() as client:
        client.delete(first.keys[0])
    await store.settle(first.settle())

    everything = Everything(store, first.org)

    async def end_the_second() -> None:
        await store.settle(second.settle())
        if is_archived:
            everything.archived = await store.rows(first.org, 0, 9)
            at_ms = now_ms()
            await store.claim_archive(first.org, "me", at_ms, at_ms + DAY_MS)
            await store.seal(Seal(first.org, at_ms, "me", at_ms + DAY_MS, 0, 3, "hash"))
            assert await store.rows(first.org, 0, 9) == []

    auditor = Auditor(Between(store, end_the_second), store, now_ms)
    _, left = await auditor.repair(first.org, everything, reason="lost")

    assert left == []
    assert await store.balances(first.org, first.keys, now_ms()) == (Balance(1400), Balance(140))


async def test_a_bucket_of_a_rolling_window_that_was_changed_is_found_and_set_right(
    store: RedisStore, any_server: Server
) -> None:
    call = Call()
    reserve = with_rolling(call)
    await store.reserve(reserve)
    charges = tuple(
        type(c)(h.key, 700, h.forget_at_ms)
        for c, h in zip([*call.settle().charges, call.settle().charges[0]], reserve.holds,
                        strict=True)
    )  # fmt: skip
    settle = call.settle()
    await store.settle(type(settle)(call.id, call.org, now_ms(), now_ms(), DAY_MS, charges, 700))
    key = reserve.holds[2].key
    with any_server.client() as client:
        (bucket,) = [name for name in client.hkeys(key) if name != "held"]
        client.hincrby(key, bucket, 11)
        client.hset(key, str(int(bucket) - 3), 5)

    (drift,) = (await audited(store, call.org)).drifts
    await auditor(store).repair(call.org, Everything(store, call.org), reason="x")

    assert (drift.key, drift.what, drift.amount) == (key, "spent", 16)
    assert (await audited(store, call.org)).is_clean


async def test_a_row_that_is_missing_is_a_finding(store: RedisStore, any_server: Server) -> None:
    first = await some_calls(store)
    with any_server.client() as client:
        client.xdel(f"xa1:{{{first.org}}}:rows", "0-3")

    audit = await audited(store, first.org)

    assert any("row 3 is missing" in finding for finding in audit.findings)


async def test_a_reservation_that_lost_its_record_is_a_finding(
    store: RedisStore, any_server: Server
) -> None:
    first = await some_calls(store)
    with any_server.client() as client:
        client.delete(f"xa1:{{{first.org}}}:r:{first.id}")

    audit = await audited(store, first.org)

    assert any(first.id in finding for finding in audit.findings)


async def test_nothing_that_moves_is_a_drift(store: RedisStore) -> None:
    """Eight agents reserve, settle, release and let leases run out while the audit looks."""
    first = Call()
    stop = asyncio.Event()
    dice = random.Random(7)

    async def agent() -> None:
        while not stop.is_set():
            with contextlib.suppress(ClockSkewError):  # of a machine that stood still
                await work(first.sibling())

    async def work(call: Call) -> None:
        lease_ms = dice.choice([-1, DAY_MS])
        await store.reserve(call.reserve(dice.randrange(1000), limit=10**12, lease_ms=lease_ms))
        await asyncio.sleep(dice.random() / 100)
        match dice.randrange(4):
            case 0:
                await store.release(call.release())
            case 1:
                await store.expire(first.org, now_ms(), DAY_MS, 3)
            case _:
                await store.settle(call.settle(dice.randrange(3000)))

    agents = [asyncio.create_task(agent()) for _ in range(8)]
    try:
        for _ in range(30):
            audit = await audited(store, first.org)
            assert audit.is_clean, audit
    finally:
        stop.set()
        await asyncio.gather(*agents)
    assert audit.rows > 100


async def test_a_counter_is_set_right_though_calls_go_on_over_it(
    store: RedisStore, any_server: Server
) -> None:
    first = Call()
    stop = asyncio.Event()

    async def agent() -> None:
        while not stop.is_set():
            call = first.sibling()
            await store.reserve(call.reserve(limit=10**12, lease_ms=DAY_MS))
            await store.settle(call.settle())
            await asyncio.sleep(0.02)

    agents = [asyncio.create_task(agent()) for _ in range(2)]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), 0.2)
    with any_server.client() as client:
        client.hincrby(first.keys[0], "spent", 12345)
        client.hincrby(first.keys[0], "held", 7)
    _, left = await auditor(store).repair(first.org, Everything(store, first.org), reason="x")
    stop.set()
    await asyncio.gather(*agents)

    assert left == []
    assert (await audited(store, first.org)).is_clean
