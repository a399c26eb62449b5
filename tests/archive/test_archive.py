"""What was archived is read again, from any row on, by whoever opens it."""

from pathlib import Path

import pytest
from archived import KEY, archive_in, archived, some_rows

from extauthz.archive import Archive, ArchiveError, ArchiveWriter, Chain, Head, verify
from extauthz.ledger import Tally

KEYS = pytest.mark.parametrize("key", [None, KEY], ids=["without a key", "with a key"])


@KEYS
def test_rows_are_read_from_any_row_on(tmp_path: Path, key: bytes | None) -> None:
    archive = archived(tmp_path, 25, key)

    for after in range(27):
        assert list(archive.rows(after)) == some_rows(after + 1, 25)
    assert archive.last_seq == 25
    assert archive.hash_at(25) == archive.last_hash
    assert archive.hash_at(26) is None


def test_an_archive_that_never_was_is_empty(tmp_path: Path) -> None:
    archive = archive_in(tmp_path / "none")

    assert (archive.last_seq, archive.last_hash, list(archive.rows())) == (0, "", [])
    assert archive.latest_checkpoint() == (Tally(), 0)
    assert verify(archive).findings == []


@pytest.mark.parametrize("last", [1, 9, 10, 11, 20, 25])
@KEYS
def test_a_new_writer_goes_on_where_the_last_one_ended(
    tmp_path: Path, last: int, key: bytes | None
) -> None:
    archive = archived(tmp_path, last, key)
    ArchiveWriter(archive, rows_per_segment=10).append(some_rows(last + 1, last + 12))

    assert list(archive.rows()) == some_rows(1, last + 12)
    assert verify(archive).findings == []
    whole = archived(tmp_path / "at once", last + 12, key)
    assert archive.last_hash == whole.last_hash


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "books" / "acme"
    archived(directory)

    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_checkpoint_and_the_rows_after_it_are_all_rows(tmp_path: Path) -> None:
    archive = archived(tmp_path, 25)
    all_rows = Tally()
    for row in archive.rows():
        all_rows.add(row)
    at_ms = 25 * 12_000

    tally, seq = archive.latest_checkpoint()
    assert seq == tally.last_seq == 20
    for row in archive.rows(seq):
        tally.add(row)

    assert tally.last_seq == 25
    for name in all_rows.counters:
        is_forgotten = all_rows.counters[name].forget_at_ms <= 20 * 12_000
        expected = 0 if is_forgotten else all_rows.spent(name, at_ms)
        assert tally.spent(name, at_ms) == expected
    assert len(tally.counters) < len(all_rows.counters)
    assert [archive.latest_checkpoint(before)[1] for before in (0, 9, 10, 19, 20)] == [
        0,
        0,
        10,
        10,
        20,
    ]


def test_rows_that_leave_a_gap_are_not_taken(tmp_path: Path) -> None:
    writer = ArchiveWriter(archived(tmp_path, 5), rows_per_segment=10)

    with pytest.raises(ArchiveError, match="row 6 is missing"):
        writer.append(some_rows(7, 8))


@pytest.mark.parametrize(
    ("written", "read", "text"),
    [
        (None, KEY, "was written without a key, and one is given"),
        (KEY, None, "was written with a key, and none is given"),
        (KEY, b"another key of the same length!!!", "the key is another one"),
    ],
)
def test_a_wrong_key_is_told_and_nothing_is_written(
    tmp_path: Path, written: bytes | None, read: bytes | None, text: str
) -> None:
    archived(tmp_path, 5, written)

    with pytest.raises(ArchiveError, match=text):
        ArchiveWriter(archive_in(tmp_path, read))


def test_the_archive_of_one_org_is_not_that_of_another(tmp_path: Path) -> None:
    storage = archived(tmp_path, 5).storage

    with pytest.raises(ArchiveError, match="of the org 'acme'"):
        list(Archive(storage, Chain("other")).rows())


def test_a_reader_sees_what_was_confirmed_when_it_began(tmp_path: Path) -> None:
    archive = archived(tmp_path, 5)
    reading = archive.rows()
    seen = [next(reading)]
    ArchiveWriter(archive, rows_per_segment=10).append(some_rows(6, 30))

    assert [*seen, *reading] == some_rows(1, 5)


def test_a_head_that_names_another_hash_of_its_row_is_refused(tmp_path: Path) -> None:
    """With a seal that fits: without a key anybody can make one."""
    archive = archived(tmp_path, 5)
    (tmp_path / "HEAD").write_bytes(Head(5, b"\1" * 32).text(archive.chain))

    for read in (lambda: list(archive.rows()), lambda: ArchiveWriter(archive)):
        with pytest.raises(ArchiveError, match="has another hash of row 5"):
            read()
    assert [finding.file for finding in verify(archive).findings] == ["HEAD"]


def test_a_writer_confirms_the_rows_that_a_crash_has_left_after_the_head(tmp_path: Path) -> None:
    archive = archived(tmp_path, 23)
    head = (tmp_path / "HEAD").read_bytes()
    ArchiveWriter(archive, rows_per_segment=10).append(some_rows(24, 25))
    (tmp_path / "HEAD").write_bytes(head)
    assert archive.last_seq == 23

    ArchiveWriter(archive, rows_per_segment=10)

    assert archive.last_seq == 25
