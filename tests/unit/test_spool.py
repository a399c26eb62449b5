"""The queue on disk: what was acknowledged comes back, in order, whatever was cut short."""

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.store import spool as module
from extauthz.store.spool import Spool


def taken(spool: Spool) -> list[bytes]:
    """Everything that waits, taken in order."""
    records: list[bytes] = []
    while segment := spool.oldest():
        records += segment
        spool.drop_oldest()
    return records


def test_records_come_back_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([b"first", b""])
    spool.append([b"third" * 1000])

    assert spool.depth == 3
    assert taken(spool) == [b"first", b"", b"third" * 1000]
    assert spool.depth == 0
    assert list(tmp_path.iterdir()) == []


def test_what_waits_survives_a_new_process(tmp_path: Path) -> None:
    Spool(tmp_path).append([b"kept"])  # never closed, as after a kill

    survivor = Spool(tmp_path)

    assert survivor.depth == 1
    assert taken(survivor) == [b"kept"]


def test_what_is_appended_while_the_oldest_is_taken_is_not_dropped_with_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([b"old"])
    assert spool.oldest() == [b"old"]

    spool.append([b"new"])
    spool.drop_oldest()

    assert spool.depth == 1
    assert taken(spool) == [b"new"]


def test_a_full_segment_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEGMENT_BYTES_MAX", 100)
    spool = Spool(tmp_path)
    records = [bytes([n]) * 60 for n in range(6)]
    for record in records:
        spool.append([record])

    assert len(list(tmp_path.iterdir())) > 1
    assert taken(Spool(tmp_path)) == records


@given(st.integers(min_value=0, max_value=40))
def test_a_record_that_a_crash_cut_short_is_left_out_and_those_before_it_are_kept(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    spool = Spool(directory)
    spool.append([b"whole"])
    spool.append([b"x" * 33])
    (segment,) = directory.iterdir()
    os.truncate(segment, segment.stat().st_size - 1 - cut)

    assert Spool(directory).oldest() == [b"whole"]


def test_a_record_whose_bytes_changed_is_not_believed(tmp_path: Path) -> None:
    Spool(tmp_path).append([b"record"])
    (segment,) = tmp_path.iterdir()
    segment.write_bytes(segment.read_bytes()[:-1] + b"?")

    assert taken(Spool(tmp_path)) == []


def test_after_a_failed_write_the_next_record_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append([b"before"])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _disk_full)
        with pytest.raises(OSError, match="full"):
            spool.append([b"failed"])

    spool.append([b"after"])

    assert b"after" in taken(spool)


@pytest.mark.parametrize("failing", [1, 2])  # the directory's fsync, the segment's
def test_the_depth_counts_what_was_acknowledged_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    spool, fsync, calls = Spool(tmp_path), os.fsync, itertools.count(1)

    def fails_once(descriptor: int) -> None:
        (_disk_full if next(calls) == failing else fsync)(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails_once)
        with pytest.raises(OSError, match="full"):
            spool.append([b"1", b"2"])
    assert spool.depth == 0

    spool.append([b"1", b"2"])  # handed over again
    assert spool.depth == 2
    assert len(list(tmp_path.iterdir())) == 2, "what follows goes to a segment that is whole"
    while spool.depth:  # as its reader does: nothing waits behind a depth of 0
        spool.oldest()
        spool.drop_oldest()
    spool.append([b"3", b"4"])

    assert spool.depth == 2
    assert taken(spool) == [b"3", b"4"]
    assert spool.depth == 0


def _disk_full(_descriptor: int) -> None:
    raise OSError("disk full")


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    Spool(directory).append([b"x"])

    assert directory.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())
