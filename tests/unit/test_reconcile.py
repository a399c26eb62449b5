"""Reconciling settles what is open, leaves alone what is known, and costs one read for that."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from service_rules import DOLLAR, Clock, agent, budget, rules

from extauthz.ids import mark_of, minted_at_ms, request_mark, uuid7
from extauthz.ledger import Balance, Hold, Outcome, Release, Reserve
from extauthz.providers.base import CapturedResponse
from extauthz.service.call_record import CallRecord, HeldPart
from extauthz.service.completed_call import CompletedCall
from extauthz.service.reconcile import Reconciled, Reconciler, UnansweredCheck
from extauthz.service.settle import Settlement, Settler
from extauthz.service.waiting import HeldRoom
from extauthz.servicers.file_log import Read
from extauthz.servicers.follow_log import LogFollower
from extauthz.servicers.log_files import LogFiles, Place
from extauthz.store.base import StoreUnavailableError, counter_key
from extauthz.store.memory import MemoryStore

KEY = counter_key("default", "agent/bot/day/usd", 0)
USAGE = '{"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}'
HORIZON_MS = 86_400_000


class Told:
    def __init__(self) -> None:
        self.settlements: list[Settlement] = []
        self.results: list[tuple[int, int]] = []

    def settled(self, settlement: Settlement) -> None:
        self.settlements.append(settlement)

    def reconciled(self, result: Reconciled, unreadable: int) -> None:
        self.results.append((result.settled, unreadable))


class Shop:
    """A store with its reconciler, and calls that cost three dollars and hold ten."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock)
        self.told = Told()
        settler = Settler(rules(agent(budget(100))), self.store, HeldRoom(), self.clock, self.told)
        self.reconciler = Reconciler(settler, self.clock)

    def call(self, **fields: object) -> CompletedCall:
        now_ms = self.clock()
        forget_at_ms = now_ms + 10 * HORIZON_MS
        record = CallRecord(
            uuid7(now_ms), "d", "default", "bot", "openai", "small", now_ms, HORIZON_MS,
            10 * DOLLAR,
            (HeldPart(KEY, "usd", 10 * DOLLAR, forget_at_ms),),
        )  # fmt: skip
        captured = CapturedResponse(usage=USAGE, model='"small"', complete=True)
        call = CompletedCall(
            record, captured, 200, via_upstream=True, left=True, refused=False, periodic=False,
            ended_at_ms=now_ms,
        )  # fmt: skip
        return replace(call, **fields)  # type: ignore[arg-type]

    async def reserved(self, *, lease_ms: int = 900_000, **fields: object) -> CompletedCall:
        call = self.call(**fields)
        record, (part,) = call.record, call.record.parts
        hold = Hold(part.key, part.amount, 1000 * DOLLAR, part.forget_at_ms)
        at_ms = self.clock()
        await self.store.reserve(
            Reserve(record.reservation_id, record.org, at_ms, at_ms + lease_ms, (hold,))
        )
        return call

    async def balance(self) -> Balance:
        (balance,) = await self.store.balances("default", [KEY], self.clock())
        return balance


@pytest.fixture
def shop() -> Shop:
    return Shop()


async def test_an_open_call_is_settled_once(shop: Shop) -> None:
    call = await shop.reserved()

    first = await shop.reconciler.reconcile([call])
    second = await shop.reconciler.reconcile([call, call])

    assert (first.outcomes, first.known) == (Counter({Outcome.SETTLED: 1}), 0)
    assert (second.outcomes, second.known) == (Counter(), 1)
    assert await shop.balance() == Balance(3 * DOLLAR, 0)
    assert [one.outcome for one in shop.told.settlements] == [Outcome.SETTLED]


async def test_what_a_lease_has_charged_is_corrected(shop: Shop) -> None:
    call = await shop.reserved(lease_ms=1)
    shop.clock.now += 2
    await shop.store.expire("default", shop.clock(), HORIZON_MS, 10)
    assert await shop.balance() == Balance(10 * DOLLAR, 0)

    result = await shop.reconciler.reconcile([call])

    assert result.outcomes == {Outcome.LATE: 1}
    assert await shop.balance() == Balance(3 * DOLLAR, 0)


async def test_what_was_given_back_and_then_billed_is_charged(shop: Shop) -> None:
    call = await shop.reserved()
    id_ = call.record.reservation_id
    await shop.store.release(Release(id_, "default", shop.clock(), HORIZON_MS, (KEY,)))

    result = await shop.reconciler.reconcile([call])

    assert result.outcomes == {Outcome.ANOMALY: 1}
    assert await shop.balance() == Balance(3 * DOLLAR, 0)


async def test_a_call_that_never_left_is_given_back_and_only_once(shop: Shop) -> None:
    call = await shop.reserved(captured=CapturedResponse(), left=False, status=503)

    first = await shop.reconciler.reconcile([call])
    second = await shop.reconciler.reconcile([call])

    assert first.outcomes == {Outcome.RELEASED: 1}
    assert second.known == 1
    assert await shop.balance() == Balance()


async def test_an_open_stream_is_renewed_by_a_recent_sign_of_life_only(shop: Shop) -> None:
    old = await shop.reserved(periodic=True, lease_ms=1000, ended_at_ms=0)
    young = await shop.reserved(periodic=True, lease_ms=1000)

    result = await shop.reconciler.reconcile([old, young])

    assert (result.settled, result.known) == (0, 2)
    shop.clock.now += 2000
    expired = await shop.store.expire("default", shop.clock(), HORIZON_MS, 10)
    assert [ending.id for ending in expired] == [old.record.reservation_id]


async def test_the_end_of_a_call_counts_whatever_signs_of_life_stand_beside_it(shop: Shop) -> None:
    call = await shop.reserved()
    sign = replace(call, periodic=True, captured=CapturedResponse())

    result = await shop.reconciler.reconcile([sign, call, sign])

    assert result.outcomes == {Outcome.SETTLED: 1}


async def test_a_call_that_the_store_has_lost_is_recovered_if_it_is_young(shop: Shop) -> None:
    await shop.reserved()  # its counter is known
    young = shop.call()
    record = young.record._replace(reserved_at_ms=shop.clock() - HORIZON_MS - 1)
    old = replace(young, record=record._replace(reservation_id=uuid7(1)))

    result = await shop.reconciler.reconcile([young, old])

    assert result.outcomes == {Outcome.RECOVERED: 1}
    assert result.too_old == 1
    assert (await shop.balance()).spent == 3 * DOLLAR


async def test_a_store_that_is_away_is_an_error_and_all_is_settled_the_next_time(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [await shop.reserved() for _ in range(3)]

    async def away(commands: list[object]) -> list[Exception]:
        return [StoreUnavailableError("away") for _ in commands]

    with monkeypatch.context() as patched:
        patched.setattr(shop.store, "settle_many", away)
        with pytest.raises(StoreUnavailableError):
            await shop.reconciler.reconcile(calls)

    assert (await shop.reconciler.reconcile(calls)).settled == 3


async def test_a_check_that_envoy_had_no_answer_from_holds_nothing(shop: Shop) -> None:
    call = await shop.reserved()
    mine = uuid7(shop.clock(), "request-1")
    hold = Hold(KEY, DOLLAR, 1000 * DOLLAR, shop.clock() + HORIZON_MS)
    for id_ in (mine, uuid7(shop.clock() - 60_000, "request-1"), uuid7(shop.clock(), "request-2")):
        at_ms = shop.clock()
        await shop.store.reserve(Reserve(id_, "default", at_ms, at_ms + 900_000, (hold,)))
    check = UnansweredCheck("request-1", shop.clock() - 5, shop.clock() + 5)

    first = await shop.reconciler.reconcile([], [check])
    second = await shop.reconciler.reconcile([], [check])

    assert first.outcomes == {Outcome.RELEASED: 1}
    assert second.outcomes == {}
    open_ids = await shop.store.open_ids("default")
    assert mine not in open_ids
    assert len(open_ids) == 3
    assert call.record.reservation_id in open_ids


def test_an_id_tells_its_request_and_its_time() -> None:
    one, other = uuid7(1_790_000_000_123, "request"), uuid7(1_790_000_000_123, "request")

    assert one != other, "the same request may try twice"
    assert mark_of(one) == mark_of(other) == request_mark("request")
    assert minted_at_ms(one) == 1_790_000_000_123
    assert mark_of(uuid7(1)) != mark_of(uuid7(1))
    assert one[14] == "7"
    assert one[19] in "89ab"


async def test_one_call_that_cannot_be_settled_keeps_no_other_from_it(
    shop: Shop, tmp_path: Path
) -> None:
    calls = [await shop.reserved(), await shop.reserved(left=False, captured=CapturedResponse())]
    record = calls[1].record._replace(parts=(HeldPart("no counter", "usd", 1, 2),))
    follower = LogFollower(LogFiles(tmp_path), tmp_path, shop.reconciler, shop.told)

    result, useless = await follower._reconcile(
        Read([replace(calls[1], record=record), calls[0]], [], 0)
    )

    assert (result.outcomes, useless) == ({Outcome.SETTLED: 1}, 1)


async def test_a_follower_goes_on_where_another_has_ended(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    path.write_bytes(b"no line\n")
    for expected in ([(0, 1)], [(0, 1), (0, 2)]):
        follower = LogFollower(LogFiles(path), tmp_path / "bookmark", shop.reconciler, shop.told)
        assert follower.backlog == 1
        follower._place = Place.load(follower.bookmark)
        await follower.follow()
        assert shop.told.results == expected
        with path.open("ab") as file:
            file.write(b"none either\nnor this\n")


async def test_a_changed_primary_has_the_whole_log_gone_through_again_before_leases_charge(
    shop: Shop, tmp_path: Path
) -> None:
    path, bookmark = tmp_path / "access.jsonl", tmp_path / "bookmark"
    path.write_bytes(b"no line\n")
    changes = 0
    follower = LogFollower(
        LogFiles(path), bookmark, shop.reconciler, shop.told, lambda: changes, every_seconds=0.01
    )
    following = asyncio.create_task(follower.run())
    await until(lambda: not follower.backlog)
    assert (shop.told.results, bookmark.exists()) == ([(0, 1)], True)

    changes = 1
    assert follower.backlog == 1, "a lease would charge what the log is about to settle"
    await until(lambda: not follower.backlog)
    assert shop.told.results == [(0, 1), (0, 1)]
    bookmark.unlink()
    await until(lambda: follower.lag_seconds < 0.005)
    assert shop.told.results == [(0, 1), (0, 1)], "once for each change"
    following.cancel()


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_true():  # noqa: ASYNC110 of another task
            await asyncio.sleep(0.001)


async def test_after_this_process_was_frozen_the_log_is_gone_through_before_leases_charge(
    shop: Shop, tmp_path: Path
) -> None:
    path = tmp_path / "access.jsonl"
    path.write_bytes(b"no line\n")
    follower = LogFollower(
        LogFiles(path), tmp_path / "bookmark", shop.reconciler, shop.told, every_seconds=0.1
    )
    following = asyncio.create_task(follower.run())
    await until(lambda: not follower.backlog)

    path.write_bytes(b"no line\nwritten meanwhile\n")
    time.sleep(0.5)  # noqa: ASYNC251 - as a frozen process: nothing runs in it

    assert follower.backlog == 1
    await until(lambda: not follower.backlog)
    assert shop.told.results == [(0, 1), (0, 1)]
    following.cancel()
