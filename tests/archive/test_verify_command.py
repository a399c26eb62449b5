"""`extauthz ledger verify`: what the files say, what the store says, and what nobody could say."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ledger_calls import Call, now_ms
from servers import Server

from extauthz.archive import ArchiveWriter
from extauthz.cli import main
from extauthz.config import load
from extauthz.metrics import Metrics
from extauthz.server.archives import archives_of
from extauthz.service.archiver import Archiver
from extauthz.store.redis import RedisStore

ORG = "default"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


class Books:
    """A config with a store that has archived some rows."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.config = directory / "extauthz.yaml"
        self.config.write_text(
            f"store: {{url: '{server.url}'}}\ndata_dir: ./data\n"
            "providers: {openai: {api: openai, upstream: 'https://api.openai.com'}}\n"
        )
        self.archive = archives_of(load(self.config))(ORG)
        self.directory = Path(self.archive.storage.place)
        self._url = server.url

    def write_rows(self, count: int, *, archived: bool = True) -> None:
        self.write_calls(*(Call(org=ORG) for _ in range(count)), archived=archived)

    def write_calls(self, *calls: Call, archived: bool = True) -> None:
        async def write() -> None:
            store = RedisStore.from_url(self._url, command_timeout_s=10)
            for call in calls:
                await store.reserve(call.reserve(100, limit=10**9, lease_ms=60_000))
                await store.settle(call.settle(12))
            archiver = Archiver(
                lambda: (ORG,), store, lambda _: self.archive, now_ms, Metrics(), holder="me"
            )
            if archived:
                await archiver.look()
            await store.close()

        asyncio.run(write())

    def verify(self, *more: str) -> int:
        return self.run("ledger", "verify", *more)

    def run(self, *words: str) -> int:
        try:
            main([*words, "-c", str(self.config)])
        except SystemExit as end:
            return int(end.code or 0)
        return 0


@pytest.fixture
def books(tmp_path: Path, server: Server) -> Books:
    books = Books(tmp_path, server)
    books.write_rows(6)
    return books


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_books_that_are_as_they_were_written_are_told_so(
    books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    books.write_rows(2, archived=False)

    assert books.verify() == 0
    assert "default: 7 rows in 1 segments, chained without a key" in (out := said(capsys))
    assert "all as it was written, and the store agrees" in out


def test_a_store_that_does_not_answer_is_told_plainly(
    books: Books, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kill()

    assert books.verify() == 0
    out = said(capsys)
    assert "not compared with the store" in out
    assert "the store agrees" not in out


def test_a_changed_row_ends_with_one_and_names_its_line(
    books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    path = books.directory / f"{1:016d}.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"charged":"12"', b'"charged":"11"', 1))

    assert books.verify() == 1
    assert f"{path.name}, line 3 (row 2): was changed" in said(capsys)

    assert books.verify("--json") == 1
    (org,) = json.loads(said(capsys))["orgs"]
    assert org["findings"][0] | {"what": ""} == {
        "file": path.name, "line": 3, "seq": 2, "what": "",
    }  # fmt: skip
    assert org["is_good"] is False


def test_an_archive_that_was_made_anew_is_found_by_what_the_store_has_seen(
    books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(books.archive.rows())
    for path in books.directory.iterdir():
        path.unlink()
    ArchiveWriter(books.archive).append([replace(rows[0], id="forged"), *rows[1:]])

    assert books.verify() == 1
    assert "has another hash than the store has seen" in said(capsys)


def test_an_archive_that_was_cut_and_its_head_set_back_is_found_by_the_store(
    books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(books.archive.rows())
    for path in books.directory.iterdir():
        path.unlink()
    ArchiveWriter(books.archive).append(rows[:-1])

    assert books.verify() == 1
    assert "ends at row 6, and the store has seen rows up to 7" in said(capsys)


def test_an_archive_that_was_removed_is_found_by_the_store(
    books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in books.directory.iterdir():
        path.unlink()

    assert books.verify("--org", ORG) == 1
    assert "ends at row 0, and the store has seen rows up to 7" in said(capsys)


def test_rows_that_somebody_has_added_are_not_those_of_the_store(
    books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all hashes and the head as they must be."""
    books.write_rows(1, archived=False)
    last = list(books.archive.rows())[-1]
    ArchiveWriter(books.archive).append([replace(last, seq=last.seq + 1, id="forged")])

    assert books.verify() == 1
    assert "(row 8): is another row in the store" in said(capsys)


def test_rows_after_the_head_are_told(books: Books, capsys: pytest.CaptureFixture[str]) -> None:
    head = (books.directory / "HEAD").read_bytes()
    last = list(books.archive.rows())[-1]
    ArchiveWriter(books.archive).append([replace(last, seq=last.seq + 1)])
    (books.directory / "HEAD").write_bytes(head)

    assert books.verify() == 1
    assert "1 rows stand after the head" in said(capsys)


def test_a_store_that_has_lost_rows_is_found(
    books: Books, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.client() as client:
        client.flushall()

    assert books.verify() == 1
    assert "the store has lost rows" in said(capsys)


def test_a_call_that_was_charged_twice_is_told_by_the_audit_for_the_archive_is_as_it_was_written(
    books: Books, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The counters agree with the rows, and the hashes too: only both rows together tell."""
    call = Call(org=ORG)
    books.write_calls(call)
    with server.client() as client:
        client.delete(f"xa1:{{{ORG}}}:r:{call.id}")
    books.write_calls(call)

    assert books.verify() == 0
    assert books.run("audit") == 1
    assert f"the call {call.id} has ended before" in said(capsys)
