"""Rows leave the store once they are archived: for one archiver only, and never a row too early."""

from dataclasses import replace

import pytest
from ledger_calls import Call, now_ms, tell
from servers import Server

from extauthz.ledger import Seal, Sealed, Standing
from extauthz.store.base import BooksClosedError, LedgerStore
from extauthz.store.redis import RedisStore

MINUTE_MS = 60_000


async def with_rows(store: LedgerStore, count: int) -> Call:
    """A call in whose org so many rows are written, the first of which opens the books."""
    call = Call()
    for _ in range(count - 1):
        await store.settle(call.sibling().settle())
    return call


async def claimed(store: LedgerStore, org: str, holder: str = "me") -> Standing:
    at_ms = now_ms()
    return await store.claim_archive(org, holder, at_ms, at_ms + MINUTE_MS)


def seal(org: str, before: int, through: int, holder: str = "me") -> Seal:
    at_ms = now_ms()
    return Seal(org, at_ms, holder, at_ms + MINUTE_MS, before, through, f"hash of {through}")


async def test_what_is_sealed_is_trimmed_and_nothing_else(store: LedgerStore) -> None:
    org = (await with_rows(store, 5)).org
    before = await claimed(store, org)
    assert (before.last_seq, before.through_seq, before.hash) == (5, 0, "")

    assert await store.seal(seal(org, 0, 3)) is Sealed.SEALED

    assert [row.seq for row in await store.rows(org, 0, 9)] == [4, 5]
    after = await store.standing(org)
    assert (after.last_seq, after.through_seq, after.hash) == (5, 3, "hash of 3")


async def test_rows_are_numbered_on_when_all_are_sealed(store: LedgerStore) -> None:
    call = await with_rows(store, 3)
    await claimed(store, call.org)
    await store.seal(seal(call.org, 0, 3))
    assert await store.rows(call.org, 0, 9) == []

    await store.settle(call.sibling().settle())

    assert [row.seq for row in await store.rows(call.org, 0, 9)] == [4]
    assert (await store.standing(call.org)).last_seq == 4


async def test_one_archives_at_a_time(store: LedgerStore) -> None:
    org = (await with_rows(store, 3)).org
    await claimed(store, org, "me")

    told = await claimed(store, org, "you")

    assert told.holder == "me"
    assert await store.seal(seal(org, 0, 3, "you")) is Sealed.NOT_HOLDER
    assert len(await store.rows(org, 0, 9)) == 3


async def test_who_gives_it_up_or_is_silent_for_too_long_is_followed_by_another(
    store: LedgerStore,
) -> None:
    org = (await with_rows(store, 3)).org
    await claimed(store, org, "me")
    at_ms = now_ms()
    await store.claim_archive(org, "me", at_ms, at_ms)

    assert (await claimed(store, org, "you")).holder == "you"
    assert await store.seal(seal(org, 0, 3, "me")) is Sealed.NOT_HOLDER
    assert await store.seal(seal(org, 0, 3, "you")) is Sealed.SEALED


async def test_rows_that_are_sealed_up_to_another_one_are_left_alone(store: LedgerStore) -> None:
    org = (await with_rows(store, 5)).org
    await claimed(store, org)
    await store.seal(seal(org, 0, 2))

    assert await store.seal(seal(org, 0, 3)) is Sealed.MOVED
    assert [row.seq for row in await store.rows(org, 0, 9)] == [3, 4, 5]


async def test_rows_that_are_not_there_cannot_be_sealed(store: LedgerStore) -> None:
    org = (await with_rows(store, 5)).org
    await claimed(store, org)

    assert await store.seal(seal(org, 0, 6)) is Sealed.BEHIND
    assert len(await store.rows(org, 0, 9)) == 5
    assert (await store.standing(org)).through_seq == 0


async def test_a_seal_keeps_its_archiver(store: LedgerStore) -> None:
    org = (await with_rows(store, 3)).org
    await claimed(store, org)
    command = seal(org, 0, 3)
    await store.seal(replace(command, until_ms=command.until_ms + MINUTE_MS))

    assert (await store.standing(org)).until_ms == command.until_ms + MINUTE_MS


async def test_books_that_were_never_opened_have_no_archiver(store: LedgerStore) -> None:
    org = Call().org

    with pytest.raises(BooksClosedError):
        await claimed(store, org)
    with pytest.raises(BooksClosedError):
        await store.seal(seal(org, 0, 1))
    assert await store.standing(org) == Standing()


async def test_books_that_are_expected_are_not_opened_anew(store: LedgerStore) -> None:
    call = Call()
    store.expect_books(call.org)

    for command in (call.reserve(), call.settle(), call.release()):
        with pytest.raises(BooksClosedError):
            await tell(store, command)
    (answer,) = await store.settle_many([call.settle()])
    assert isinstance(answer, BooksClosedError)
    assert (await store.standing(call.org)).last_seq == 0


async def test_books_that_are_expected_and_there_go_on(store: LedgerStore) -> None:
    call = await with_rows(store, 3)
    store.expect_books(call.org)

    await store.settle(call.sibling().settle())

    assert (await store.standing(call.org)).last_seq == 4


async def test_whoever_claims_the_archive_hears_that_the_store_is_behind(
    store: LedgerStore,
) -> None:
    org = (await with_rows(store, 3)).org
    await claimed(store, org, "me")
    await store.note_behind(org, now_ms(), 9, "rows are lost")

    for told in (await claimed(store, org, "you"), await store.standing(org)):
        assert (told.behind, told.archived_seq, told.holder) == ("rows are lost", 9, "me")

    await store.seal(seal(org, 0, 2))
    assert (await store.standing(org)).behind == "rows are lost"
    await store.note_behind(org, now_ms(), 0, None)
    told = await claimed(store, org, "you")
    assert (told.behind, told.archived_seq, told.through_seq) == ("", 0, 2)


async def test_books_that_somebody_misses_are_not_opened_anew_by_a_host_that_never_saw_them(
    store: LedgerStore,
) -> None:
    call = Call()
    await store.note_behind(call.org, now_ms(), 9, "rows are lost")

    with pytest.raises(BooksClosedError):
        await store.reserve(call.reserve())

    await store.note_behind(call.org, now_ms(), 0, None)
    await store.reserve(call.reserve())


async def test_a_store_that_is_full_still_lets_rows_be_sealed(own_valkey: Server) -> None:
    store = RedisStore.from_url(own_valkey.url, command_timeout_s=10)
    try:
        org = (await with_rows(store, 3)).org
        with own_valkey.client() as client:
            client.config_set("maxmemory", 1)
        await claimed(store, org)

        assert await store.seal(seal(org, 0, 3)) is Sealed.SEALED
        await store.note_behind(org, now_ms(), 9, "rows are lost")
    finally:
        await store.close()
