"""Whatever is done to the archived files is found, with its file, its line and its row."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from archived import KEY, ORG, archive_in, archived, some_rows

from extauthz.archive import Archive, ArchiveWriter, Chain, line_of, verify
from extauthz.archive.archive import Head
from extauthz.archive.chain import with_hash
from extauthz.ledger import RowOutcome

KEYS = pytest.mark.parametrize("key", [None, KEY], ids=["without a key", "with a key"])
FIRST, SECOND, THIRD = (f"{first:016d}.jsonl" for first in (1, 11, 21))


def edit_lines(path: Path, change: Callable[[list[bytes]], object]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


def change_row(books: Path) -> None:
    edit_lines(books / SECOND, lambda lines: lines.__setitem__(
        4, lines[4].replace(b'"cost_nanousd":"140"', b'"cost_nanousd":"139"')))  # fmt: skip


def change_hash(books: Path) -> None:
    def change(lines: list[bytes]) -> None:
        lines[4] = lines[4][:-5] + (b"0" if lines[4][-5:-4] != b"0" else b"1") + lines[4][-4:]

    edit_lines(books / SECOND, change)


def spell_row_otherwise(books: Path) -> None:
    edit_lines(books / SECOND, lambda lines: lines.__setitem__(
        4, lines[4].replace(b'"seq":14,', b'"seq": 14,')))  # fmt: skip


def remove_row(books: Path) -> None:
    edit_lines(books / SECOND, lambda lines: lines.pop(4))


def repeat_row(books: Path) -> None:
    edit_lines(books / SECOND, lambda lines: lines.insert(5, lines[4]))


def swap_rows(books: Path) -> None:
    edit_lines(books / SECOND, lambda lines: lines.__setitem__(slice(4, 6), lines[5:3:-1]))


def add_row(books: Path) -> None:
    """At the end, after the head, with a hash that would fit if there were no key."""
    line = (books / THIRD).read_bytes().splitlines()[-1]
    hash_ = archive_in(books).chain.link(bytes.fromhex(line[-66:-2].decode()), line)
    with (books / THIRD).open("ab") as file:
        file.write(with_hash(line_of(some_rows(26, 26)[0]), hash_))


def remove_segment(books: Path) -> None:
    (books / SECOND).unlink()


def remove_first_segment(books: Path) -> None:
    (books / FIRST).unlink()


def remove_last_segment(books: Path) -> None:
    (books / THIRD).unlink()


def insert_segment(books: Path) -> None:
    shutil.copy(books / SECOND, books / f"{15:016d}.jsonl")


def empty_segment(books: Path) -> None:
    (books / SECOND).write_bytes(b"")


def cut_end_off(books: Path) -> None:
    edit_lines(books / THIRD, lambda lines: lines.pop())


def cut_last_line_in_two(books: Path) -> None:
    text = (books / THIRD).read_bytes()
    (books / THIRD).write_bytes(text[:-40])


def cut_middle_segment(books: Path) -> None:
    edit_lines(books / SECOND, lambda lines: lines.pop())


def change_head_seq(books: Path) -> None:
    head = json.loads((books / "HEAD").read_text())
    (books / "HEAD").write_text(json.dumps(head | {"seq": 24}, separators=(",", ":")) + "\n")


def garble_head(books: Path) -> None:
    (books / "HEAD").write_text("{}")


def remove_head(books: Path) -> None:
    (books / "HEAD").unlink()


def change_checkpoint(books: Path) -> None:
    path = books / f"{21:016d}.checkpoint"
    path.write_text(path.read_text().replace('"spent":"', '"spent":"1', 1))


def remove_checkpoint(books: Path) -> None:
    (books / f"{21:016d}.checkpoint").unlink()


def add_checkpoint(books: Path) -> None:
    shutil.copy(books / f"{21:016d}.checkpoint", books / f"{15:016d}.checkpoint")


def add_file(books: Path) -> None:
    (books / "notes.txt").write_text("?")


def change_first_line(books: Path) -> None:
    edit_lines(books / SECOND, lambda lines: lines.__setitem__(
        0, lines[0].replace(b"acme", b"acne")))  # fmt: skip


TAMPERINGS = [
    (change_row, SECOND, 5, 14, "was changed"),
    (change_hash, SECOND, 5, 14, "was changed"),
    (spell_row_otherwise, SECOND, 5, 14, "is not written as rows are"),
    (remove_row, SECOND, 5, 15, "row 14 is missing before row 15"),
    (repeat_row, SECOND, 6, 14, "row 14 stands in the place of row 15"),
    (swap_rows, SECOND, 5, 15, "row 14 is missing before row 15"),
    (remove_segment, THIRD, 1, 21, "rows 11 to 20 are missing before row 21"),
    (remove_first_segment, SECOND, 1, 11, "rows 1 to 10 are missing before row 11"),
    (remove_last_segment, SECOND, None, 20, "ends at row 20, and its head is row 25"),
    (insert_segment, f"{15:016d}.jsonl", 1, None, "which is not the file's name"),
    (empty_segment, SECOND, None, None, "is empty"),
    (cut_end_off, THIRD, None, 24, "ends at row 24, and its head is row 25"),
    (cut_last_line_in_two, THIRD, 6, 25, "is cut off"),
    (cut_middle_segment, THIRD, 1, 21, "row 20 is missing before row 21"),
    (change_head_seq, "HEAD", None, None, "was changed"),
    (garble_head, "HEAD", None, None, "cannot be read: it was changed"),
    (remove_head, "HEAD", None, None, "is missing, and there are rows"),
    (change_checkpoint, f"{21:016d}.checkpoint", None, 20, "was changed"),
    (remove_checkpoint, f"{21:016d}.checkpoint", None, None, "cannot be read"),
    (add_checkpoint, f"{15:016d}.checkpoint", None, None, "does not belong"),
    (add_file, "notes.txt", None, None, "does not belong"),
    (change_first_line, SECOND, 1, None, "begins a segment of the org 'acne'"),
]


@KEYS
@pytest.mark.parametrize(
    ("tamper", "file", "line", "seq", "what"),
    TAMPERINGS,
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_a_tampering_is_found_where_it_is(
    tmp_path: Path,
    tamper: Callable[[Path], None],
    file: str,
    line: int | None,
    seq: int | None,
    what: str,
    key: bytes | None,
) -> None:
    archive = archived(tmp_path, 25, key)
    assert verify(archive).findings == []

    tamper(tmp_path)

    findings = verify(archive).findings
    assert findings, "nothing was found"
    first = next(finding for finding in findings if finding.file == file)
    assert what in first.what
    if line is not None:
        assert first.line == line
    if seq is not None:
        assert first.seq == seq
    assert re.search(rf"^{file}", str(first))


def test_one_changed_row_is_one_finding(tmp_path: Path) -> None:
    archive = archived(tmp_path, 25)

    change_row(tmp_path)

    assert [(f.file, f.line, f.seq) for f in verify(archive).findings] == [(SECOND, 5, 14)]


def made_anew(archive: Archive, change: Callable[[list], list]) -> None:
    """What somebody can do who can write all files and knows how they are made."""
    rows = change(list(archive.rows()))
    for name in archive.storage.names():
        Path(archive.storage.place, name).unlink()
    writer = ArchiveWriter(archive, rows_per_segment=10)
    writer.append(rows)


def test_without_a_key_only_another_copy_of_a_hash_proves_that_all_was_made_anew(
    tmp_path: Path,
) -> None:
    archive = archived(tmp_path, 25)
    seen = archive.last_hash

    made_anew(archive, lambda rows: [replace(rows[0], cost_nanousd=1), *rows[1:]])

    verification = verify(archive, known_seqs=(25,))
    assert verification.findings == []
    assert verification.hash_of[25] != seen


def test_with_a_key_who_does_not_have_it_can_make_nothing_anew(tmp_path: Path) -> None:
    """One line and all after it, the checkpoint and the head: every hash fits but for the key."""
    archive = archived(tmp_path, 25, KEY)
    rows = list(archive.rows())
    for path in tmp_path.iterdir():
        path.unlink()
    ArchiveWriter(archive_in(tmp_path, b"a guess"), rows_per_segment=10).append(
        [replace(rows[0], cost_nanousd=1), *rows[1:]]
    )

    findings = verify(archive).findings

    assert findings[0].file == "HEAD"
    assert any("was changed" in f.what and f.file == FIRST for f in findings)


def test_with_a_key_the_end_cannot_be_taken_away_by_setting_the_head_back(tmp_path: Path) -> None:
    """The line's own hash is there to be copied; the head's seal is not."""
    archive = archived(tmp_path, 25, KEY)
    cut_end_off(tmp_path)
    last = (tmp_path / THIRD).read_bytes().splitlines()[-1][-66:-2].decode()
    guess = Chain(ORG, b"a guess")
    (tmp_path / "HEAD").write_bytes(Head(24, bytes.fromhex(last)).text(guess))

    assert "was changed" in verify(archive).findings[0].what


def test_a_checkpoint_that_does_not_add_up_is_found_even_if_its_hash_fits(tmp_path: Path) -> None:
    archive = archived(tmp_path, 20)
    writer = ArchiveWriter(archive, rows_per_segment=10)
    writer._tally.counters["agent/bot/minute/usd:3"].spent += 1
    writer.append(some_rows(21, 25))

    (finding,) = verify(archive).findings

    assert finding.file == f"{21:016d}.checkpoint"
    assert "is not what the rows before it add up to" in finding.what


def test_rows_after_the_head_are_counted_and_a_torn_line_is_none(tmp_path: Path) -> None:
    archive = archived(tmp_path, 23)
    head = (tmp_path / "HEAD").read_bytes()
    ArchiveWriter(archive, rows_per_segment=10).append(some_rows(24, 25))
    (tmp_path / "HEAD").write_bytes(head)
    with (tmp_path / THIRD).open("ab") as file:
        file.write(b'{"seq":26,')

    verification = verify(archive)

    assert verification.findings == []
    assert (verification.unconfirmed_rows, verification.last_seq) == (2, 25)


def test_lines_behind_a_zero_byte_after_the_head_are_told(tmp_path: Path) -> None:
    archive = archived(tmp_path, 23)
    with (tmp_path / THIRD).open("ab") as file:
        file.write(b"\0\n" + b'{"seq":24}\n')

    (finding,) = verify(archive).findings
    assert "zero bytes" in str(finding)


def test_more_findings_than_anybody_reads_are_not_all_kept(tmp_path: Path) -> None:
    archive = archive_in(tmp_path)
    ArchiveWriter(archive).append(some_rows(1, 300))

    def garble(lines: list[bytes]) -> None:
        lines[1:] = [line.replace(b"bot", b"bat") for line in lines[1:]]

    edit_lines(next(tmp_path.glob("*.jsonl")), garble)

    verification = verify(archive)
    assert len(verification.findings) == 100
    assert verification.has_more


def test_a_call_that_has_ended_twice_is_told_though_nobody_has_changed_the_archive(
    tmp_path: Path,
) -> None:
    """Its first ending lies segments before its second."""
    rows = some_rows(1, 25)
    rows[23] = replace(rows[23], id="call-3", outcome=RowOutcome.RECOVERED)
    ArchiveWriter(archive_in(tmp_path), rows_per_segment=10).append(rows)

    verification = verify(archive_in(tmp_path))

    assert verification.findings == []
    (told,) = verification.ended_twice
    assert (told.file, told.line, told.seq) == (THIRD, 5, 24)
    assert "call-3 has ended before" in told.what


def test_a_call_that_has_ended_twice_long_ago_is_told_no_longer(tmp_path: Path) -> None:
    rows = some_rows(1, 25)
    rows[5] = replace(rows[5], id="call-3")
    rows[24] = replace(rows[24], at_ms=rows[5].at_ms + 35 * 86_400_000 + 1)
    ArchiveWriter(archive_in(tmp_path)).append(rows)

    assert verify(archive_in(tmp_path)).ended_twice == []
