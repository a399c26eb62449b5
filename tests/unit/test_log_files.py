"""A place in the log survives rotation, restarts and inodes that are used again."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from extauthz.servicers import log_files
from extauthz.servicers.log_files import LogFiles, Place


def log_in(directory: Path, text: bytes = b"") -> LogFiles:
    path = directory / "access.jsonl"
    path.write_bytes(text)
    return LogFiles(path, quiet_seconds=0)


def lines(files: LogFiles, place: Place | None) -> tuple[list[bytes], Place | None]:
    """All from a place on, and the place behind it."""
    found = []
    while chunk := files.read(place):
        found += chunk[0]
        place = chunk[1]
    return found, place


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def rotate(files: LogFiles, name: str, text: bytes = b"") -> None:
    os.utime(files.path, (len(name), float(name)))
    files.path.rename(f"{files.path}.{name}")
    files.path.write_bytes(text)


def test_each_line_is_read_once(tmp_path: Path) -> None:
    files = log_in(tmp_path, b"1\n2\n")
    first, place = lines(files, None)
    append(files.path, b"3\n")

    assert first == [b"1", b"2"]
    assert lines(files, place)[0] == [b"3"]


def test_a_line_without_its_end_waits_for_it(tmp_path: Path) -> None:
    files = log_in(tmp_path, b"1\n2")
    first, place = lines(files, None)
    append(files.path, b"2\n")

    assert first == [b"1"]
    assert lines(files, place)[0] == [b"22"]


def test_no_more_than_the_given_sizes_is_read(tmp_path: Path) -> None:
    files = log_in(tmp_path, b"1\n")
    sizes = files.sizes()
    append(files.path, b"2\n")

    found = files.read(None, sizes)

    assert found is not None
    assert found[0] == [b"1"]
    assert files.read(found[1], sizes) is None
    assert files.read(None, {}) is None


def test_a_rotated_file_is_finished_before_the_next(tmp_path: Path) -> None:
    files = log_in(tmp_path, b"1\n")
    _, place = lines(files, None)
    append(files.path, b"2\n")
    rotate(files, "100", b"3\n")
    rotate(files, "200", b"4\ntorn")
    rotate(files, "300", b"5\n")

    assert lines(files, place)[0] == [b"2", b"3", b"4", b"5"]
    assert lines(files, None)[0] == [b"1", b"2", b"3", b"4", b"5"]


def test_a_file_that_was_just_rotated_may_still_be_written_to(tmp_path: Path) -> None:
    files = LogFiles(log_in(tmp_path, b"1\n").path, quiet_seconds=60)
    _, place = lines(files, None)
    files.path.rename(f"{files.path}.1")
    files.path.write_bytes(b"3\n")
    assert lines(files, place) == ([], place)

    append(Path(f"{files.path}.1"), b"2\n")
    found, place = lines(files, place)
    assert found == [b"2"]
    os.utime(f"{files.path}.1", (1, 1))

    assert lines(files, place)[0] == [b"3"]


def test_a_renamed_file_is_followed_until_there_is_a_new_one(tmp_path: Path) -> None:
    files = log_in(tmp_path, b"1\n")
    _, place = lines(files, None)
    files.path.rename(f"{files.path}.1")
    append(Path(f"{files.path}.1"), b"2\n")

    assert lines(files, place)[0] == [b"2"]


def test_what_is_packed_is_no_log(tmp_path: Path) -> None:
    files = log_in(tmp_path, b"1\n")
    (tmp_path / "access.jsonl.2.gz").write_bytes(b"\x1f\x8b\n")

    assert lines(files, None)[0] == [b"1"]


def test_where_the_place_is_in_no_file_all_is_read_again(tmp_path: Path) -> None:
    files = log_in(tmp_path, b"1\n2\n")
    _, place = lines(files, None)
    files.path.write_bytes(b"3\n4\n5\n")  # the same inode, other lines

    assert lines(files, place)[0] == [b"3", b"4", b"5"]
    files.path.write_bytes(b"6\n")
    assert lines(files, place)[0] == [b"6"]


def test_no_log_has_no_lines(tmp_path: Path) -> None:
    files = LogFiles(tmp_path / "none")

    assert files.read(None) is None
    assert files.start() is None
    assert files.sizes() == {}


def test_a_place_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    bookmark = tmp_path / "bookmark"
    place = Place(1, 2, "head")
    assert Place.load(bookmark) is None

    place.save(bookmark)
    assert Place.load(bookmark) == place
    assert list(tmp_path.iterdir()) == [bookmark]

    for broken in (b"", b"{", b"[]", b'{"inode": "x"}', b"\xff"):
        bookmark.write_bytes(broken)
        assert Place.load(bookmark) is None


def test_a_line_longer_than_any_is_skipped(tmp_path: Path) -> None:
    size = log_files._LINE_BYTES_MAX
    files = log_in(tmp_path, b"x" * (size + 10) + b"\n1\n")

    found, _ = lines(files, None)

    assert found == [b"", b"x" * 10, b"1"]


def test_a_line_longer_than_a_chunk_is_read_whole(tmp_path: Path) -> None:
    long = b"x" * (3 * log_files._CHUNK_BYTES)
    files = log_in(tmp_path, b"1\n" + long + b"\n2\n")

    assert lines(files, None)[0] == [b"1", long, b"2"]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_whatever_is_appended_and_rotated_each_line_is_read_once_and_in_order(
    tmp_path_factory: object, steps: list[tuple[int, bool]]
) -> None:
    files = log_in(tmp_path_factory.mktemp("log"))  # type: ignore[attr-defined]
    numbers = iter(range(1000))
    written: list[bytes] = []
    found: list[bytes] = []
    place: Place | None = None
    for turn, (count, is_rotated) in enumerate(steps, 1):
        new = [b"%d" % next(numbers) for _ in range(count)]
        append(files.path, b"".join(line + b"\n" for line in new))
        written += new
        if is_rotated:
            rotate(files, str(turn))
        if turn % 2:
            more, place = lines(files, place)
            found += more
    found += lines(files, place)[0]

    assert found == written
