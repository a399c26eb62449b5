"""Rows go from the store to the archive: none is lost, none stands there twice, whatever fails."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from archived import archive_in
from ledger_calls import Call, now_ms
from servers import Server

from extauthz.archive import Archive, ArchiveError, ArchiveWriter, BehindError, verify
from extauthz.ledger import Row, Seal, Sealed, Standing
from extauthz.metrics import Metrics
from extauthz.service.archiver import Archiver
from extauthz.service.books import all_rows
from extauthz.store.base import BooksClosedError, StoreUnavailableError
from extauthz.store.memory import MemoryStore
from extauthz.store.redis import RedisStore

ORG = "acme"


class Crash(BaseException):
    """The process is gone: nothing may catch it."""


@dataclass
class Place:
    """A store and a directory; every archiver in it is another process."""

    store: Any
    directory: Path
    holders: int = 0

    @property
    def archive(self) -> Archive:
        return archive_in(self.directory)

    def archiver(self, **parts: Any) -> Archiver:
        self.holders += 1
        archive = parts.get("archive", self.archive)
        return Archiver(
            lambda: (ORG,),
            parts.get("store", self.store),
            lambda _org: archive,
            now_ms,
            parts.get("metrics") or Metrics(),
            holder=parts.get("holder", "the service"),
        )

    async def write_rows(self, count: int) -> None:
        for _ in range(count):
            call = Call(org=ORG)
            await self.store.reserve(call.reserve(100, limit=10**9, lease_ms=60_000))
            await self.store.settle(call.settle(12))

    async def books(self) -> list[str]:
        return [row.id async for row in all_rows(self.archive, self.store, ORG)]

    async def must_have(self, expected: list[str]) -> None:
        assert await self.books() == expected
        assert [row.seq for row in self.archive.rows()] == list(range(1, self.archive.last_seq + 1))
        assert verify(self.archive).findings == []


@pytest.fixture(params=["memory", "valkey"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "memory":
        yield Place(MemoryStore(), tmp_path / "books")
        return
    with Server() as server:
        store = RedisStore.from_url(server.url, command_timeout_s=10)
        yield Place(store, tmp_path / "books")
        await store.close()


@pytest.fixture
async def own_store() -> AsyncIterator[RedisStore]:
    with Server() as server:
        store = RedisStore.from_url(server.url, command_timeout_s=10)
        yield store
        await store.close()


def value(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"org": ORG})


async def test_rows_are_archived_and_leave_the_store(place: Place) -> None:
    await place.write_rows(450)
    before, metrics = await place.books(), Metrics()

    await place.archiver(metrics=metrics).look()

    assert await place.store.rows(ORG, 0, 9) == []
    assert place.archive.last_seq == 451
    await place.must_have(before)
    assert value(metrics, "extauthz_books_unsealed_rows") == 0
    assert value(metrics, "extauthz_books_sealed_seq") == 451
    assert value(metrics, "extauthz_books_archiving") == 1


async def test_books_that_are_not_opened_yet_are_waited_for(place: Place) -> None:
    archiver = place.archiver()
    await archiver.begin()
    assert archiver.behind(ORG) is None

    await place.write_rows(1)
    await archiver.look()

    assert place.archive.last_seq == 2


class FailingStorage:
    """Stops the process, or fails, at the n-th write; before it, half-way or after it."""

    def __init__(self, storage: Any, at: int, how: str, error: BaseException) -> None:
        self._storage, self._left, self._how, self._error = storage, at, how, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def append(self, name: str, data: bytes) -> None:
        self._write(lambda part: self._storage.append(name, part), data, is_whole=False)

    def replace(self, name: str, data: bytes) -> None:
        self._write(lambda part: self._storage.replace(name, part), data, is_whole=True)

    def _write(self, write: Callable[[bytes], None], data: bytes, *, is_whole: bool) -> None:
        self._left -= 1
        if self._left == 0:
            if self._how == "half-way" and not is_whole:
                write(data[: len(data) // 2])
            if self._how == "after":
                write(data)
            raise self._error
        write(data)


class FailingStore:
    """Stops the process, or loses the answer, at the first seal: before or after it is done."""

    def __init__(self, store: Any, how: str, error: BaseException) -> None:
        self._store, self._how, self._error = store, how, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def seal(self, command: Seal) -> Sealed:
        if self._how == "after":
            await self._store.seal(command)
        raise self._error


ERRORS = pytest.mark.parametrize(
    "error", [Crash(), ArchiveError("the disk is full")], ids=["a crash", "an error"]
)


@ERRORS
@pytest.mark.parametrize("how", ["before", "half-way", "after"])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_failure_at_any_write_loses_and_doubles_nothing(
    place: Place, at: int, how: str, error: BaseException
) -> None:
    """The writes: of the rows, of the head, and once more of the rows that came meanwhile."""
    await place.write_rows(20)
    await place.archiver().look()
    await place.write_rows(205)
    before = await place.books()
    storage = FailingStorage(place.archive.storage, at, how, error)

    failing = place.archiver(archive=Archive(storage, place.archive.chain))
    try:
        await failing.look()
    except Crash:
        assert isinstance(error, Crash)

    await place.write_rows(3)
    before = [*before, *(row.id for row in (await place.store.rows(ORG, len(before), 9)))]
    again = failing if isinstance(error, ArchiveError) else place.archiver()
    if again is failing:
        storage._left = 10**9
    await again.look()
    await place.must_have(before)
    assert await place.store.rows(ORG, 0, 9) == []


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_failure_as_the_archive_begins_loses_nothing(
    place: Place, at: int, how: str
) -> None:
    await place.write_rows(5)
    before = await place.books()
    storage = FailingStorage(place.archive.storage, at, how, Crash())
    with pytest.raises(Crash):
        await place.archiver(archive=Archive(storage, place.archive.chain)).look()

    await place.archiver().look()

    await place.must_have(before)


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize(
    "error", [Crash(), StoreUnavailableError("no answer")], ids=["a crash", "no answer"]
)
async def test_a_failure_at_the_seal_loses_and_doubles_nothing(
    place: Place, how: str, error: BaseException
) -> None:
    await place.write_rows(20)
    before = await place.books()
    try:
        await place.archiver(store=FailingStore(place.store, how, error)).look()
    except Crash:
        assert isinstance(error, Crash)

    await place.archiver().look()

    await place.must_have(before)
    assert await place.store.rows(ORG, 0, 9) == []


async def test_only_one_of_two_services_archives_and_the_other_follows(place: Place) -> None:
    await place.write_rows(5)
    first, metrics = place.archiver(holder="first"), Metrics()
    second = place.archiver(holder="second", metrics=metrics)
    await first.look()
    await place.write_rows(5)

    await second.look()
    assert place.archive.last_seq == 6
    assert value(metrics, "extauthz_books_archiving") == 0
    assert value(metrics, "extauthz_books_unsealed_rows") == 5

    await first.finish()
    await second.look()
    assert place.archive.last_seq == 11
    assert value(metrics, "extauthz_books_archiving") == 1


async def test_an_archive_in_another_place_is_not_begun_anew(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await place.write_rows(5)
    await place.archiver().look()
    await place.write_rows(5)
    other, metrics = Place(place.store, tmp_path / "elsewhere"), Metrics()

    await other.archiver(metrics=metrics).look()

    assert "the archive is in another data_dir" in caplog.text
    assert value(metrics, "extauthz_books_archiving") == 0
    assert len(await place.store.rows(ORG, 0, 9)) == 5
    assert other.archive.last_seq == 0


async def test_who_has_another_archive_keeps_nobody_from_the_right_one(
    place: Place, tmp_path: Path
) -> None:
    await place.write_rows(5)
    await place.archiver(holder="first").look()
    at_ms = now_ms()
    await place.store.claim_archive(ORG, "first", at_ms, at_ms)  # as if it had been silent
    await place.write_rows(5)
    other = Place(place.store, tmp_path / "elsewhere")
    await other.archiver(holder="other").look()

    await place.archiver(holder="first again").look()

    assert place.archive.last_seq == 11


async def test_an_archive_whose_end_was_taken_away_is_refused(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await place.write_rows(5)
    await place.archiver().look()
    shutil.copytree(place.directory, tmp_path / "old")
    await place.write_rows(5)
    await place.archiver().look()
    await place.write_rows(1)
    shutil.rmtree(place.directory)
    shutil.copytree(tmp_path / "old", place.directory)

    await place.archiver().look()

    assert "ends at row 6, and rows up to 11 were archived" in caplog.text
    assert place.archive.last_seq == 6
    assert len(await place.store.rows(ORG, 0, 9)) == 1


async def test_an_archive_that_was_made_anew_is_refused(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """All its hashes fit, but the store has seen another one."""
    await place.write_rows(5)
    await place.archiver().look()
    rows = [replace(row, id=f"not {row.id}") for row in place.archive.rows()]
    shutil.rmtree(place.directory)
    ArchiveWriter(place.archive).append(rows)

    await place.archiver().look()

    assert "is not the one that the store has seen archived" in caplog.text


async def test_a_store_without_the_archived_books_stays_closed(place: Place) -> None:
    await place.write_rows(5)
    await place.archiver().look()
    empty = Place(MemoryStore(), place.directory)
    archiver = empty.archiver()

    await archiver.begin()

    assert "has no books" in str(archiver.behind(ORG))
    with pytest.raises(BooksClosedError):
        await empty.store.reserve(Call(org=ORG).reserve())


async def test_a_store_that_has_lost_rows_is_behind_and_nothing_is_written(place: Place) -> None:
    await place.write_rows(5)
    await place.archiver().look()
    older = Place(MemoryStore(), place.directory)
    await older.write_rows(3)
    archiver = older.archiver()

    await archiver.begin()

    assert isinstance(archiver.behind(ORG), BehindError)
    assert "end at row 4 in the store, and at row 6 in the archive" in str(archiver.behind(ORG))
    assert len(await older.store.rows(ORG, 0, 9)) == 4
    assert place.archive.last_seq == 6


async def test_a_store_that_was_set_back_and_went_on_is_behind(place: Place) -> None:
    await place.write_rows(5)
    await place.archiver().look()
    older = Place(MemoryStore(), place.directory)
    await older.write_rows(9)
    archiver = older.archiver()

    await archiver.look()

    assert "is another one in the store than in the archive" in str(archiver.behind(ORG))
    assert len(await older.store.rows(ORG, 0, 99)) == 10
    assert place.archive.last_seq == 6


async def test_a_store_that_is_set_back_while_it_is_archived_is_behind(place: Place) -> None:
    """As by a fail-over: the same process goes on with another primary."""
    await place.write_rows(5)
    switch = Switch(place.store)
    archiver = place.archiver(store=switch)
    await archiver.look()
    older = MemoryStore()
    await older.settle(Call(org=ORG).settle())
    switch.store = older

    await archiver.look()
    assert isinstance(archiver.behind(ORG), BehindError)
    switch.store = AwayStore()
    await archiver.look()
    assert isinstance(archiver.behind(ORG), BehindError)

    switch.store = place.store
    await archiver.look()
    assert archiver.behind(ORG) is None


async def set_back(place: Place) -> None:
    """Six rows are archived, and the store has four."""
    source = Place(MemoryStore(), place.directory)
    await source.write_rows(5)
    await source.archiver().look()
    await place.write_rows(3)


async def test_hosts_without_the_archive_hear_that_the_store_is_behind(
    place: Place, tmp_path: Path
) -> None:
    await set_back(place)
    elsewhere = Place(place.store, tmp_path / "elsewhere")
    other = elsewhere.archiver(holder="other")

    await place.archiver(holder="first").look()
    await other.look()

    assert "end at row 4 in the store" in str(other.behind(ORG))
    assert elsewhere.archive.last_seq == 0, "its rows are not the beginning of another archive"
    assert len(await place.store.rows(ORG, 0, 9)) == 4


async def test_a_host_without_the_archive_takes_no_call_on_a_store_that_was_set_back(
    own_store: RedisStore, tmp_path: Path
) -> None:
    place = Place(own_store, tmp_path / "books")
    await set_back(place)
    store = RedisStore(own_store._courier)
    await store.reserve(Call(org=ORG).reserve())
    other = Place(store, tmp_path / "elsewhere").archiver(holder="other")

    await place.archiver(holder="first").look()
    await other.look()

    with pytest.raises(BooksClosedError, match="end at row 4 in the store"):
        await store.reserve(Call(org=ORG).reserve())


async def test_only_who_has_the_archive_can_say_that_a_store_is_whole_again(
    place: Place, tmp_path: Path
) -> None:
    await place.write_rows(5)
    first = place.archiver(holder="first")
    other = Place(place.store, tmp_path / "elsewhere").archiver(holder="other")
    await first.look()
    await first.finish()
    await place.store.note_behind(ORG, now_ms(), 6, "it was set back")

    await other.look()
    assert str(other.behind(ORG)) == "it was set back"
    assert (await place.store.standing(ORG)).behind == "it was set back"

    await first.look()
    await other.look()
    assert (first.behind(ORG), other.behind(ORG)) == (None, None)
    assert (await place.store.standing(ORG)).behind == ""


async def test_a_store_stays_behind_while_it_is_rebuilt(place: Place) -> None:
    source = Place(MemoryStore(), place.directory)
    await source.write_rows(5)
    await source.archiver().look()
    await place.write_rows(9)  # it has gone on since, to as many rows
    archiver = place.archiver()
    await archiver.look()

    with place.archive.storage.lock() as is_ours:
        assert is_ours
        await archiver.look()

    assert isinstance(archiver.behind(ORG), BehindError)


async def test_who_has_another_archive_says_of_no_store_that_it_is_behind(
    place: Place, tmp_path: Path
) -> None:
    """As one that was given up with `ledger rebuild --go-on`, on a host that is still there."""
    await place.write_rows(5)
    await place.archiver(holder="first").look()
    other = Place(MemoryStore(), tmp_path / "given up")
    await other.write_rows(9)
    await other.archiver().look()
    other.store = place.store
    archiver = other.archiver(holder="other")

    await archiver.look()

    assert isinstance(archiver.behind(ORG), BehindError)
    assert (await place.store.standing(ORG)).behind == ""


class Switch:
    def __init__(self, store: Any) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class AwayStore:
    def distrust_books(self, *_: Any) -> None:
        pass

    async def claim_archive(self, *_: Any) -> Standing:
        raise StoreUnavailableError("is away")


async def test_books_that_lack_archived_rows_take_nothing(
    own_store: RedisStore, tmp_path: Path
) -> None:
    place = Place(MemoryStore(), tmp_path / "books")
    await place.write_rows(5)
    await place.archiver().look()
    older = Place(own_store, place.directory)
    await older.write_rows(3)

    await older.archiver().begin()

    with pytest.raises(BooksClosedError, match="end at row 4 in the store"):
        await own_store.reserve(Call(org=ORG).reserve())


async def test_a_store_that_is_away_is_looked_for_again(place: Place) -> None:
    await place.write_rows(5)
    switch, metrics = Switch(AwayStore()), Metrics()
    archiver = place.archiver(store=switch, metrics=metrics)
    await archiver.look()
    assert value(metrics, "extauthz_books_archiving") == 0

    switch.store = place.store
    await archiver.look()

    assert place.archive.last_seq == 6
    assert value(metrics, "extauthz_books_archiving") == 1


async def test_all_rows_are_read_without_a_gap_while_they_are_archived(place: Place) -> None:
    await place.write_rows(30)
    archiver = place.archiver()
    seen: list[int] = []
    async for row in all_rows(place.archive, place.store, ORG):
        seen.append(row.seq)
        if row.seq % 7 == 0:
            await place.write_rows(1)
            await archiver.look()

    last = (await place.store.standing(ORG)).last_seq
    assert seen == list(range(1, last + 1))


class Meanwhile:
    """A store in which something happens each time after it was asked how far it is sealed."""

    def __init__(self, store: Any, happening: Callable[[], Awaitable[None]]) -> None:
        self._store, self._happening = store, happening
        self.rows = store.rows

    async def standing(self, org: str) -> Standing:
        standing: Standing = await self._store.standing(org)
        await self._happening()
        return standing


async def test_a_row_that_is_written_and_sealed_between_two_questions_is_no_gap(
    place: Place,
) -> None:
    await place.write_rows(1)
    archiver, happened = place.archiver(), 0
    await archiver.look()

    async def written_and_sealed_and_one_more_written() -> None:
        nonlocal happened
        happened += 1
        if happened < 4:
            await place.write_rows(1)
            await archiver.look()
            await place.write_rows(1)

    store: Any = Meanwhile(place.store, written_and_sealed_and_one_more_written)
    seen = [row.seq async for row in all_rows(place.archive, store, ORG)]

    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > 2


async def test_a_row_that_the_store_has_lost_is_told(place: Place) -> None:
    await place.write_rows(3)

    class Lossy(Meanwhile):
        async def without_the_third(self, org: str, after_seq: int, count: int) -> list[Row]:
            rows: list[Row] = await self._store.rows(org, after_seq, count + 1)
            return [row for row in rows if row.seq != 3][:count]

    async def nothing() -> None:
        pass

    store: Any = Lossy(place.store, nothing)
    store.rows = store.without_the_third
    with pytest.raises(ArchiveError, match="row 3 of the org 'acme' is in no place"):
        [row async for row in all_rows(place.archive, store, ORG)]


async def test_rows_that_are_in_no_place_are_told(place: Place, tmp_path: Path) -> None:
    await place.write_rows(5)
    await place.archiver().look()
    elsewhere = Place(place.store, tmp_path / "elsewhere")

    with pytest.raises(ArchiveError, match="they are in another archive"):
        await elsewhere.books()
