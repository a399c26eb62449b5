"""A store that has lost everything, or the last minutes, stands again as the books say."""

import argparse
import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import redis
from ledger_calls import DAY_MS, Call, now_ms
from servers import Server, until

from extauthz.archive import Archive, ArchiveDirectory, ArchiveWriter, Chain, verify
from extauthz.commands.audit import rebuild_orgs
from extauthz.ledger import (
    KEYS_MAX,
    Change,
    Charge,
    Hold,
    Key,
    Outcome,
    Override,
    Overrides,
    Reserve,
    Row,
    RowOutcome,
    Seal,
    Sealed,
    Settle,
    Tally,
)
from extauthz.service.audit import Auditor
from extauthz.service.rebuild import Rebuilder, RebuildError
from extauthz.store.base import BooksClosedError, counter_key, rolling_counter_key
from extauthz.store.redis import RedisStore


@pytest.fixture
async def store(any_server: Server) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(any_server.url, command_timeout_s=10)
    yield store
    await store.close()


class Books:
    """An org with an archive, and what may happen to its store."""

    def __init__(self, store: RedisStore, server: Server, directory: Path) -> None:
        self.store, self.server = store, server
        self.call = Call()
        self.org = self.call.org
        self.archive = Archive(ArchiveDirectory(directory), Chain(self.org))
        self.writer = ArchiveWriter(self.archive)

    async def seal(self) -> None:
        self.writer.append(await self.store.rows(self.org, self.writer.last_seq, 10_000))

    async def trim(self) -> None:
        """As an archiver does when the rows are archived."""
        at_ms = now_ms()
        standing = await self.store.claim_archive(self.org, "archiver", at_ms, at_ms + 1)
        last_seq, last_hash = self.writer.last_seq, self.writer.last_hash
        through = standing.through_seq
        seal = Seal(self.org, at_ms, "archiver", at_ms + 1, through, last_seq, last_hash)
        assert await self.store.seal(seal) is Sealed.SEALED

    def lose_everything(self) -> None:
        with self.server.client() as client:
            for key in client.scan_iter(f"xa1:{{{self.org}}}:*"):
                client.delete(key)

    def counter_ends(self) -> dict[str, int]:
        """When each counter will be forgotten."""
        with self.server.client() as client:
            keys = list(client.scan_iter(f"xa1:{{{self.org}}}:c:*"))
            return {str(key): client.pexpiretime(key) for key in keys}

    def is_override_known(self, id_: str) -> bool:
        with self.server.client() as client:
            return bool(client.exists(f"xa1:{{{self.org}}}:o:{id_}"))

    def snapshot(self) -> dict[str, bytes]:
        with redis.Redis(unix_socket_path=str(self.server.socket)) as client:
            keys = client.scan_iter(f"xa1:{{{self.org}}}:*")
            return {key: client.dump(key) for key in keys}

    def go_back_to(self, snapshot: dict[str, bytes]) -> None:
        self.lose_everything()
        with redis.Redis(unix_socket_path=str(self.server.socket)) as client:
            for key, value in snapshot.items():
                client.restore(key, 0, value)

    def rebuilder(self) -> Rebuilder:
        return Rebuilder(self.store, self.store.bookkeeping, self.archive, now_ms, DAY_MS)

    def archive_elsewhere(self, directory: Path) -> None:
        """Go on with what is in another directory, as after the loss of the archive's disk."""
        self.archive = Archive(ArchiveDirectory(directory), Chain(self.org))
        self.writer = ArchiveWriter(self.archive)

    async def balances(self) -> Any:
        return await self.store.balances(self.org, self.call.keys, now_ms())

    async def is_clean(self) -> bool:
        audit = await Auditor(self.store.bookkeeping, self.store, now_ms).audit(self.org, self)
        assert audit.is_clean, audit
        return True

    def checkpoint(self) -> Tally:
        return Tally()

    async def rows(self, after_seq: int) -> AsyncIterator[Row]:
        for row in self.archive.rows(after_seq):
            yield row
            after_seq = row.seq
        for row in await self.store.rows(self.org, after_seq, 10_000):
            yield row


@pytest.fixture
def books(store: RedisStore, any_server: Server, tmp_path: Path) -> Books:
    return Books(store, any_server, tmp_path / "books")


async def settled(books: Books, cost: int = 700) -> Call:
    call = books.call.sibling()
    await books.store.reserve(call.reserve(lease_ms=DAY_MS))
    await books.store.settle(call.settle(cost))
    return call


async def test_a_flushed_store_is_rebuilt_to_the_same_balances(books: Books) -> None:
    one = await settled(books)
    released, expired = books.call.sibling(), books.call.sibling()
    await books.store.reserve(released.reserve(lease_ms=DAY_MS))
    await books.store.reserve(expired.reserve(lease_ms=-1))
    await books.store.release(released.release())
    await books.store.expire(books.org, now_ms(), DAY_MS, 9)
    before = await books.balances()
    await books.seal()

    books.lose_everything()
    with pytest.raises(BooksClosedError):
        await books.store.reserve(books.call.sibling().reserve())
    rebuilt = await books.rebuilder().rebuild(books.org, reason="flushed")

    assert await books.balances() == before
    assert await books.is_clean()
    assert (rebuilt.counters, rebuilt.endings) == (2, 3)
    # Whatever comes again is known: nothing is charged twice.
    assert (await books.store.settle(one.settle())).outcome is Outcome.DUPLICATE
    assert (await books.store.release(released.release())).outcome is Outcome.DUPLICATE
    assert await books.store.unconfirmed_ids(books.org) == [expired.id]
    assert (await books.store.settle(expired.settle(10))).outcome is Outcome.LATE
    assert await books.is_clean()


async def test_what_was_not_archived_is_recovered_when_its_entry_comes_again(
    books: Books,
) -> None:
    await settled(books)
    await books.seal()
    lost = await settled(books, 500)
    before = await books.balances()

    books.lose_everything()
    await books.rebuilder().rebuild(books.org, reason="flushed")
    again = await books.store.settle(lost.settle(500))

    assert again.outcome is Outcome.RECOVERED
    assert await books.balances() == before
    assert await books.is_clean()


async def test_a_store_that_fell_back_keeps_what_it_did_since_and_nothing_twice(
    books: Books,
) -> None:
    """As a replica that was promoted without the last rows, and went on."""
    await settled(books)
    twice = books.call.sibling()
    await books.store.reserve(twice.reserve(lease_ms=DAY_MS))
    old = books.snapshot()
    await books.store.settle(twice.settle(300))
    await settled(books, 40)
    await books.seal()
    books.go_back_to(old)
    await books.store.settle(twice.settle(300))  # told again to the promoted one
    await settled(books, 5)
    open_still = books.call.sibling()
    await books.store.reserve(open_still.reserve(lease_ms=DAY_MS))

    rebuilt = await books.rebuilder().rebuild(books.org, reason="failed over")

    spent, held = (await books.balances())[0].spent, (await books.balances())[0].held
    assert (spent, held) == (700 + 300 + 40 + 5, 1000)
    assert (rebuilt.adopted, rebuilt.contradicted) == (1, 1)
    assert await books.is_clean()


async def test_overrides_are_in_force_again(books: Books) -> None:
    at_ms = now_ms()
    for n, (change, target, amount) in enumerate(
        [
            (Change.SET, "agent/bot/day/usd", 5),
            (Change.TOP_UP, "agent/bot/day/usd", 7),
            (Change.PAUSE, "agent:bot", 0),
        ]
    ):
        end = at_ms + DAY_MS if change is Change.TOP_UP else None
        await books.store.override(
            Override(f"o{n}", books.org, at_ms, change, target, at_ms + DAY_MS, amount, end)
        )
    before = await books.store.overrides(books.org, now_ms())
    await books.seal()

    books.lose_everything()
    rebuilt = await books.rebuilder().rebuild(books.org, reason="flushed")

    assert await books.store.overrides(books.org, now_ms()) == before
    assert rebuilt.overrides == 3


async def test_keys_are_there_again_and_a_revoked_one_is_not(books: Books) -> None:
    kept, revoked = (f"sha256:{digit * 64}" for digit in "ab")

    async def say(change: Change, key_hash: str, until_ms: int | None = None) -> None:
        at_ms = now_ms()
        said = Override(
            str(uuid4()),
            books.org,
            at_ms,
            change,
            "agent:bot",
            at_ms + DAY_MS,
            until_ms=until_ms,
            key_hash=key_hash,
        )
        await books.store.override(said)

    await say(Change.ADMIT, revoked)
    await say(Change.ADMIT, kept)
    await say(Change.ADMIT, kept, now_ms() + DAY_MS)
    before_it_was_revoked = books.snapshot()
    await say(Change.REVOKE, revoked)
    before = (await books.store.overrides(books.org, now_ms())).keys
    await books.seal()

    books.go_back_to(before_it_was_revoked)
    assert revoked in (await books.store.overrides(books.org, now_ms())).keys
    await books.rebuilder().rebuild(books.org, reason="set back")

    assert before.keys() == {kept}
    assert (await books.store.overrides(books.org, now_ms())).keys == before


async def test_as_many_keys_as_an_org_may_have_are_put_back_in_one_step(books: Books) -> None:
    bookkeeping = books.store.bookkeeping
    assert await bookkeeping.close(books.org, 0)
    many = {f"sha256:{n:064x}": Key("agent:bot", now_ms()) for n in range(KEYS_MAX)}

    await bookkeeping.restore_overrides(books.org, Overrides(keys=many))

    assert (await books.store.overrides(books.org, now_ms())).keys == many


async def test_a_store_that_has_everything_is_left_alone(books: Books) -> None:
    await settled(books)
    await books.seal()
    await settled(books)
    before = await books.balances()

    with pytest.raises(RebuildError, match="nothing to rebuild"):
        await books.rebuilder().rebuild(books.org, reason="x")

    assert await books.balances() == before
    assert (await books.store.reserve(books.call.sibling().reserve())) is not None


async def test_a_rebuild_that_was_stopped_half_way_is_done_again(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settled(books)
    before = await books.balances()
    await books.seal()
    books.lose_everything()
    rebuilder = books.rebuilder()

    async def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rebuilder, "_open", stop)
    with pytest.raises(KeyboardInterrupt):
        await rebuilder.rebuild(books.org, reason="x")
    with pytest.raises(BooksClosedError):
        await books.store.reserve(books.call.sibling().reserve())
    await books.rebuilder().rebuild(books.org, reason="again")

    assert await books.balances() == before
    assert await books.is_clean()


async def test_going_on_without_what_was_lost_is_written_off_with_its_reason(
    books: Books,
) -> None:
    one = await settled(books)
    at_ms = now_ms()
    await books.store.override(
        Override("o", books.org, at_ms, Change.PAUSE, "agent:bot", at_ms + DAY_MS)
    )
    await books.seal()
    books.lose_everything()

    await books.rebuilder().go_on(books.org, reason="the numbers do not matter any more")

    (row,) = await books.store.rows(books.org, books.archive.last_seq, 9)
    assert row.outcome is RowOutcome.REPAIR
    assert "do not matter" in row.particulars
    assert (await books.balances())[0].spent == 0
    assert await books.is_clean()
    # Nothing is charged again that was charged before, and nobody is let in who was not.
    assert (await books.store.settle(one.settle())).outcome is Outcome.DUPLICATE
    assert "agent:bot" in (await books.store.overrides(books.org, now_ms())).pauses


async def test_going_on_writes_off_what_a_rolling_window_has_lost(books: Books) -> None:
    call = books.call
    reserve = call.reserve(lease_ms=DAY_MS)
    key = rolling_counter_key(books.org, "rolling", 3_600_000)
    hold = reserve.holds[0]._replace(key=key)
    await books.store.reserve(replace(reserve, holds=(hold,)))
    settle = call.settle()
    await books.store.settle(replace(settle, charges=(replace(settle.charges[0], key=key),)))
    await books.seal()
    books.lose_everything()

    await books.rebuilder().go_on(books.org, reason="x")

    assert (await books.store.balances(books.org, [key], now_ms()))[0].spent == 0
    assert await books.is_clean()


async def test_books_that_were_never_archived_here_can_only_be_begun_anew(books: Books) -> None:
    await settled(books)
    books.lose_everything()

    await books.rebuilder().go_on(books.org, reason="there is no archive")

    assert (await books.store.rows(books.org, 0, 9))[0].seq == 1
    await settled(books)
    assert await books.is_clean()


async def test_who_was_paused_is_paused_before_the_books_are_open(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a rebuild that is stopped then would leave everybody running whom somebody has stopped."""
    await settled(books)
    at_ms = now_ms()
    pause = Override("o", books.org, at_ms, Change.PAUSE, "agent:bot", at_ms + DAY_MS)
    await books.store.override(pause)
    await books.seal()
    books.lose_everything()
    rebuilder = books.rebuilder()

    async def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rebuilder, "_open", stop)
    with pytest.raises(KeyboardInterrupt):
        await rebuilder.rebuild(books.org, reason="x")

    assert "agent:bot" in (await books.store.overrides(books.org, now_ms())).pauses


async def test_a_top_up_is_there_once_however_often_the_books_are_rebuilt(books: Books) -> None:
    at_ms = now_ms()
    top_up = Override("o", books.org, at_ms, Change.TOP_UP, "b", at_ms + DAY_MS, 7)
    await books.store.override(top_up)
    await books.seal()
    before = await books.store.overrides(books.org, now_ms())
    with books.server.client() as client:  # its id may be forgotten while it holds still
        client.delete(f"xa1:{{{books.org}}}:o:o")
        client.delete(f"xa1:{{{books.org}}}:rows")

    await books.rebuilder().rebuild(books.org, reason="x")

    assert await books.store.overrides(books.org, now_ms()) == before
    assert (await books.store.override(replace(top_up, at_ms=now_ms()))).value == "duplicate"


async def test_a_store_whose_rows_are_all_sealed_is_left_alone(books: Books) -> None:
    await settled(books)
    await books.seal()
    await books.trim()

    with pytest.raises(RebuildError, match="nothing to rebuild"):
        await books.rebuilder().rebuild(books.org, reason="x")

    assert (await books.store.reserve(books.call.sibling().reserve())) is not None


async def test_a_store_that_forgot_how_far_it_is_sealed_is_rebuilt(books: Books) -> None:
    """An archiver distrusts it; so there must be a way out, even where nothing else is lost."""
    await settled(books)
    await books.seal()
    await books.trim()
    await settled(books, 5)
    with books.server.client() as client:
        client.delete(f"xa1:{{{books.org}}}:archive")

    rebuilt = await books.rebuilder().rebuild(books.org, reason="x")

    assert rebuilt.adopted == 1
    assert (await books.balances())[0].spent == 705
    assert await books.is_clean()


async def test_a_row_that_is_written_and_sealed_meanwhile_stops_a_rebuild(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settled(books)
    old = books.snapshot()
    await settled(books, 40)
    await books.seal()
    books.go_back_to(old)
    bookkeeping = books.store.bookkeeping
    rebuilder = Rebuilder(books.store, bookkeeping, books.archive, now_ms, DAY_MS)
    close = bookkeeping.close

    async def close_late(org: str, last_read: int) -> bool:
        await settled(books, 5)
        with books.server.client() as client:
            client.xtrim(f"xa1:{{{org}}}:rows", maxlen=0)
        return await close(org, last_read)

    monkeypatch.setattr(bookkeeping, "close", close_late)
    with pytest.raises(RebuildError, match="meanwhile"):
        await rebuilder.rebuild(books.org, reason="x")

    assert (await books.balances())[0].spent == 705


@pytest.mark.parametrize("cost", [100, 3000])
async def test_what_only_a_store_that_fell_back_knows_of_an_expired_call_is_kept(
    books: Books, cost: int
) -> None:
    late, ended = books.call.sibling(), books.call.sibling()
    await books.store.reserve(late.reserve(lease_ms=-1))
    await books.store.expire(books.org, now_ms(), DAY_MS, 9)
    await books.store.reserve(ended.reserve(lease_ms=-1))
    old = books.snapshot()
    await books.store.expire(books.org, now_ms(), DAY_MS, 9)
    await settled(books, 40)
    await settled(books, 40)
    await books.seal()
    books.go_back_to(old)
    assert (await books.store.settle(late.settle(cost))).outcome is Outcome.LATE
    assert (await books.store.settle(ended.settle(cost))).outcome is Outcome.SETTLED

    rebuilt = await books.rebuilder().rebuild(books.org, reason="failed over")

    assert (rebuilt.adopted, rebuilt.contradicted) == (2, 0)
    assert (await books.balances())[0].spent == 2 * cost + 80
    assert await books.is_clean()
    for call in (late, ended):
        assert (await books.store.settle(call.settle(cost))).outcome is Outcome.DUPLICATE


@pytest.mark.parametrize("horizon_ms", [DAY_MS, -1000], ids=["lately", "long ago"])
async def test_what_a_store_that_was_set_back_holds_is_not_charged_if_it_has_ended(
    books: Books, horizon_ms: int
) -> None:
    call = books.call.sibling()
    await books.store.reserve(call.reserve(lease_ms=-1))
    old = books.snapshot()
    await books.store.settle(call.settle(300))
    await books.seal()
    books.go_back_to(old)
    rebuilder = Rebuilder(books.store, books.store.bookkeeping, books.archive, now_ms, horizon_ms)

    await rebuilder.rebuild(books.org, reason="an old copy")

    assert await books.store.open_reservations(books.org) == 0
    assert await books.is_clean()
    await books.store.expire(books.org, now_ms(), DAY_MS, 9)
    assert [(b.spent, b.held) for b in await books.balances()] == [(300, 0), (30, 0)]


@pytest.mark.parametrize("is_known", [True, False], ids=["held again", "unknown again"])
async def test_a_call_that_was_given_back_and_then_billed_by_a_store_that_was_set_back_is_charged(
    books: Books, is_known: bool
) -> None:
    call = books.call.sibling()
    await settled(books, 40)
    before_it = books.snapshot()
    await books.store.reserve(call.reserve(lease_ms=DAY_MS))
    old = books.snapshot() if is_known else before_it
    assert (await books.store.release(call.release())).outcome is Outcome.RELEASED
    await books.seal()
    books.go_back_to(old)
    outcome = (await books.store.settle(call.settle(700))).outcome
    assert outcome is (Outcome.SETTLED if is_known else Outcome.RECOVERED)

    rebuilt = await books.rebuilder().rebuild(books.org, reason="set back")

    assert (rebuilt.adopted, rebuilt.contradicted) == (1, 0)
    assert list(books.archive.rows())[-1].outcome is RowOutcome.ANOMALY
    assert [(b.spent, b.held) for b in await books.balances()] == [(740, 0), (74, 0)]
    assert (await books.store.settle(call.settle(700))).outcome is Outcome.DUPLICATE
    assert await books.is_clean()


@pytest.mark.parametrize("is_known", [True, False], ids=["held again", "unknown again"])
async def test_a_call_that_its_lease_was_charged_for_and_is_proven_free_afterwards_is_free(
    books: Books, is_known: bool
) -> None:
    call = books.call.sibling()
    await settled(books, 40)
    before_it = books.snapshot()
    await books.store.reserve(call.reserve(lease_ms=-1))
    old = books.snapshot() if is_known else before_it
    await books.store.expire(books.org, now_ms(), DAY_MS, 9)
    await books.seal()
    books.go_back_to(old)
    assert (await books.store.release(call.release())).outcome is Outcome.RELEASED

    rebuilt = await books.rebuilder().rebuild(books.org, reason="set back")

    assert (rebuilt.adopted, rebuilt.contradicted) == (1, 0)
    row = list(books.archive.rows())[-1]
    assert (row.outcome, row.change_nanousd) == (RowOutcome.LATE, -row.cost_before_nanousd)
    assert [(b.spent, b.held) for b in await books.balances()] == [(40, 0), (4, 0)]
    assert await books.store.unconfirmed_ids(books.org) == []
    assert (await books.store.release(call.release())).outcome is Outcome.DUPLICATE
    assert await books.is_clean()


async def test_an_override_whose_id_was_used_again_is_in_force_again(books: Books) -> None:
    """An id is forgotten when what it changed has ended: another incident may bear its name."""
    first_ms = now_ms()
    first = Override(
        "incident", books.org, first_ms, Change.PAUSE, "agent:bot", first_ms + 1, until_ms=first_ms
    )
    await books.store.override(first)
    await asyncio.to_thread(until, lambda: not books.is_override_known("incident"))
    await paused(books, "incident")
    before = await books.store.overrides(books.org, now_ms())
    assert "agent:bot" in before.pauses
    await books.seal()

    books.lose_everything()
    rebuilt = await books.rebuilder().rebuild(books.org, reason="flushed")

    assert await books.store.overrides(books.org, now_ms()) == before
    assert rebuilt.overrides == 2


@pytest.mark.parametrize("is_repeat", [True, False], ids=["a repeat", "another one"])
async def test_what_operators_told_a_store_that_was_set_back_holds_once(
    books: Books, is_repeat: bool
) -> None:
    at_ms = now_ms()
    await settled(books)
    old = books.snapshot()
    first = Override("o", books.org, at_ms, Change.TOP_UP, "b", at_ms + DAY_MS, 7, note="by ann")
    await books.store.override(first)
    await books.seal()
    books.go_back_to(old)
    again = replace(first, at_ms=now_ms(), note="by bob")
    if not is_repeat:
        again = replace(again, amount=5)
    assert (await books.store.override(again)).value == "applied"

    await books.rebuilder().rebuild(books.org, reason="set back")

    (top_up,) = (await books.store.overrides(books.org, now_ms())).budgets["b"].top_ups
    assert top_up.amount == (7 if is_repeat else 12)


async def test_of_two_rebuilds_at_once_the_second_finds_nothing_to_do(books: Books) -> None:
    await settled(books)
    old = books.snapshot()
    await settled(books, 10)
    await books.seal()
    books.go_back_to(old)
    for _ in range(5):
        await settled(books, 10)

    answers = await asyncio.gather(
        *(books.rebuilder().rebuild(books.org, reason=word) for word in "ab"),
        return_exceptions=True,
    )

    assert [isinstance(answer, RebuildError) for answer in answers].count(True) == 1, answers
    assert not verify(books.archive).findings
    assert [balance.spent for balance in await books.balances()] == [760, 76]
    assert await books.is_clean()


async def test_a_lost_call_is_recovered_in_a_window_of_which_no_row_is_left(books: Books) -> None:
    """As every call in the first seconds of a minute: its budget of the day counts it, too."""
    await settled(books)
    await books.seal()
    at_ms = now_ms()
    keys = (books.call.keys[0], counter_key(books.org, "minute", at_ms // 60_000 * 60))
    holds = tuple(Hold(key, 1000, 10_000, at_ms + DAY_MS) for key in keys)
    await books.store.reserve(Reserve("lost", books.org, at_ms, at_ms + DAY_MS, holds))
    books.lose_everything()
    await books.rebuilder().rebuild(books.org, reason="flushed")

    charges = tuple(Charge(key, 900, at_ms + DAY_MS) for key in keys)
    ending = await books.store.settle(Settle("lost", books.org, now_ms(), at_ms, DAY_MS, charges))

    assert ending.outcome is Outcome.RECOVERED
    balances = await books.store.balances(books.org, keys, now_ms())
    assert [balance.spent for balance in balances] == [1600, 900]
    assert await books.is_clean()


@pytest.mark.parametrize("rows_since", [0, 1])
async def test_rows_that_were_trimmed_were_archived_whatever_the_store_remembers_of_that(
    books: Books, tmp_path: Path, rows_since: int
) -> None:
    await settled(books)
    await books.seal()
    await books.trim()
    for _ in range(rows_since):
        await settled(books, 40)
    with books.server.client() as client:
        client.delete(f"xa1:{{{books.org}}}:archive")
    before = await books.balances()
    books.archive_elsewhere(tmp_path / "new")

    with pytest.raises(RebuildError, match="older copy"):
        await books.rebuilder().rebuild(books.org, reason="x")
    await books.rebuilder().go_on(books.org, reason="the disk has died")

    assert await books.balances() == before
    assert await books.is_clean()


async def test_who_was_told_that_the_store_is_behind_hears_no_more_of_it_after_a_rebuild(
    books: Books,
) -> None:
    await settled(books)
    await books.seal()
    await books.trim()
    old = books.snapshot()
    await settled(books, 40)
    await books.seal()
    books.go_back_to(old)
    await books.store.note_behind(books.org, now_ms(), books.archive.last_seq, "it was set back")

    await books.rebuilder().rebuild(books.org, reason="set back")

    assert (await books.store.standing(books.org)).behind == ""
    assert (await books.balances())[0].spent == 740


async def test_an_archive_with_fewer_rows_than_the_one_that_misses_some_is_refused(
    books: Books,
) -> None:
    await settled(books)
    await books.seal()
    await books.trim()
    last_seq = books.archive.last_seq
    await books.store.note_behind(books.org, now_ms(), last_seq + 1, "it was set back")

    with pytest.raises(RebuildError, match="older copy"):
        await books.rebuilder().rebuild(books.org, reason="set back")


async def test_archived_books_are_not_begun_anew_by_a_host_that_never_saw_them(
    books: Books, any_server: Server
) -> None:
    await settled(books)
    await books.seal()
    await books.trim()
    with books.server.client() as client:
        client.delete(f"xa1:{{{books.org}}}:rows")
    fresh = RedisStore.from_url(any_server.url, command_timeout_s=10)

    with pytest.raises(BooksClosedError):
        await fresh.reserve(books.call.sibling().reserve())
    await fresh.close()


async def paused(books: Books, id_: str, change: Change = Change.PAUSE) -> None:
    at_ms = now_ms()
    await books.store.override(Override(id_, books.org, at_ms, change, "agent:bot", at_ms + DAY_MS))


@pytest.mark.parametrize("copy", ["none", "an older one", "another one"])
async def test_a_whole_store_is_not_set_back_to_an_archive_that_lacks_what_was_sealed(
    books: Books, tmp_path: Path, copy: str
) -> None:
    await settled(books)
    await books.seal()
    await books.trim()
    if copy == "an older one":
        shutil.copytree(tmp_path / "books", tmp_path / "copy")
    await settled(books, 40)
    await books.seal()
    if copy == "another one":
        rows = [replace(row, id=f"not {row.id}") for row in books.archive.rows()]
        ArchiveWriter(Archive(ArchiveDirectory(tmp_path / "copy"), Chain(books.org))).append(rows)
    await books.trim()
    before = await books.balances()
    books.archive_elsewhere(tmp_path / "copy")

    with pytest.raises(RebuildError, match="older copy, or another archive"):
        await books.rebuilder().rebuild(books.org, reason="it looked wrong")

    assert await books.balances() == before
    assert (await books.store.reserve(books.call.sibling().reserve())) is not None


@pytest.mark.parametrize("copy", ["none", "an older one"])
async def test_going_on_with_a_whole_store_keeps_all_that_it_shows(
    books: Books, tmp_path: Path, copy: str
) -> None:
    """The archive's disk is gone: what is spent, paused and ended is known to the store alone."""
    corrected, open_still = books.call.sibling(), books.call.sibling()
    await books.store.reserve(corrected.reserve(lease_ms=-1))
    await books.store.expire(books.org, now_ms(), DAY_MS, 9)
    await paused(books, "first")
    await books.seal()
    await books.trim()
    if copy == "an older one":
        shutil.copytree(tmp_path / "books", tmp_path / "copy")
    await paused(books, "over", Change.RESUME)
    await books.store.settle(corrected.settle(100))
    one = await settled(books)
    await books.store.reserve(open_still.reserve(lease_ms=DAY_MS))
    await paused(books, "second")
    await books.seal()
    await books.trim()
    await settled(books, 5)  # not archived yet
    before, ends = await books.balances(), books.counter_ends()
    overrides = await books.store.overrides(books.org, now_ms())
    books.archive_elsewhere(tmp_path / "copy")

    await books.rebuilder().go_on(books.org, reason="the disk has died")

    assert await books.balances() == before
    assert all(books.counter_ends()[key] >= end for key, end in ends.items())
    assert await books.store.overrides(books.org, now_ms()) == overrides
    assert await books.is_clean()
    assert any("the disk has died" in row.particulars for row in books.archive.rows())
    for call, cost in ((corrected, 100), (one, 700)):
        assert (await books.store.settle(call.settle(cost))).outcome is Outcome.DUPLICATE
    assert (await books.store.settle(open_still.settle(1000))).outcome is Outcome.SETTLED
    assert await books.is_clean()


async def test_going_on_keeps_what_a_rolling_window_shows(books: Books, tmp_path: Path) -> None:
    call = books.call
    reserve, settle = call.reserve(lease_ms=DAY_MS), call.settle()
    key = rolling_counter_key(books.org, "rolling", 3_600_000)
    await books.store.reserve(replace(reserve, holds=(reserve.holds[0]._replace(key=key),)))
    await books.store.settle(replace(settle, charges=(replace(settle.charges[0], key=key),)))
    await books.seal()
    await books.trim()
    books.archive_elsewhere(tmp_path / "new")

    await books.rebuilder().go_on(books.org, reason="x")

    assert (await books.store.balances(books.org, [key], now_ms()))[0].spent == 700
    assert await books.is_clean()


async def test_books_that_another_service_archives_are_not_gone_on_with(
    books: Books, tmp_path: Path
) -> None:
    await settled(books)
    await books.seal()
    await books.trim()
    at_ms = now_ms()
    await books.store.claim_archive(books.org, "archiver", at_ms, at_ms + DAY_MS)
    before = await books.balances()
    books.archive_elsewhere(tmp_path / "of another host")

    with pytest.raises(RebuildError, match="another data_dir archives the rows"):
        await books.rebuilder().go_on(books.org, reason="x")

    assert await books.balances() == before
    assert (await books.store.reserve(books.call.sibling().reserve())) is not None


async def test_an_org_that_has_lost_nothing_keeps_no_other_from_its_rebuild(
    store: RedisStore, any_server: Server, tmp_path: Path
) -> None:
    """As when a rebuild was stopped between two orgs, or one node of a Cluster was flushed."""
    whole, lost = (Books(store, any_server, tmp_path / name) for name in ("whole", "lost"))
    for books in (whole, lost):
        await settled(books)
        await books.seal()
    lost.lose_everything()
    archives = {books.org: books.archive for books in (whole, lost)}
    policies = SimpleNamespace(all_orgs=tuple(archives), settle_horizon_ms=DAY_MS)
    desk: Any = SimpleNamespace(
        policies=policies, store=store, clock=now_ms, archive_of=archives.__getitem__
    )
    options = argparse.Namespace(reason="one was flushed", go_on=False)

    await rebuild_orgs(desk, options)

    assert (await lost.balances())[0].spent == 700
    with pytest.raises(RebuildError, match="nothing to rebuild"):
        await rebuild_orgs(desk, options)
