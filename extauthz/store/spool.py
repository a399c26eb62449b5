"""A queue on disk for what the store cannot take now: nothing handed over is lost to a crash.

Records are appended to numbered segments and are on disk (`fsync`) before `append` returns. They
are replayed in order; a segment is deleted when all of it has been taken. What was taken of a
segment is not remembered: a replay after a crash starts the segment anew, which is harmless for
commands that are idempotent.

A record is its length and CRC-32 (each four bytes, big-endian) and its bytes. A crash can cut the
last record of a segment short: it was never acknowledged, so reading ends there.
"""

import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from extauthz.durable import sync_directory

_HEADER = struct.Struct("!II")
_SEGMENT_BYTES_MAX = 4 * 1024 * 1024
_SUFFIX = ".spool"


class Spool:
    """For one process at a time. Its methods wait for the disk: call them in a thread."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._segments = sorted(directory.glob(f"*{_SUFFIX}"))
        # What was acknowledged: an append that failed half-way leaves more in its segment.
        self._counts = {segment: len(list(_read(segment))) for segment in self._segments}
        self._depth = sum(self._counts.values())
        self._last = int(self._segments[-1].stem) if self._segments else 0
        self._file: int | None = None
        self._written = 0
        self._lock = threading.RLock()

    @property
    def depth(self) -> int:
        """How many records wait."""
        return self._depth

    def append(self, records: Sequence[bytes]) -> None:
        """Add records at the end; when this returns they are on disk.

        Raises:
            OSError: the disk is full or broken; nothing was acknowledged.
        """
        data = b"".join(_HEADER.pack(len(r), zlib.crc32(r)) + r for r in records)
        with self._lock:
            self._append(data)
            self._counts[self._segments[-1]] += len(records)
            self._depth += len(records)

    def _append(self, data: bytes) -> None:
        try:
            if self._file is None or self._written > _SEGMENT_BYTES_MAX:
                self._open_segment()
            assert self._file is not None
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError:
            # What follows a record that was cut short could not be read: begin a new segment.
            self._close_segment()
            raise
        self._written += len(data)

    def oldest(self) -> list[bytes]:
        """The records of the oldest segment, in order; empty if nothing waits.

        No more is appended to that segment from now on.
        """
        with self._lock:
            while self._segments:
                if len(self._segments) == 1:
                    self._close_segment()
                records = list(_read(self._segments[0]))
                if records:
                    return records
                self.drop_oldest()
            return []

    def drop_oldest(self) -> None:
        """Forget the oldest segment: all of it has been taken."""
        with self._lock:
            segment = self._segments.pop(0)
            self._depth -= self._counts.pop(segment)
            segment.unlink()
            sync_directory(self._directory)

    def close(self) -> None:
        """Close the file; what waits stays on disk."""
        with self._lock:
            self._close_segment()

    def _open_segment(self) -> None:
        self._close_segment()
        self._last += 1
        path = self._directory / f"{self._last:012d}{_SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._written = 0
        self._segments.append(path)
        self._counts[path] = 0
        sync_directory(self._directory)

    def _close_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _read(segment: Path) -> Iterator[bytes]:
    """The whole records of a segment."""
    data = segment.read_bytes()
    at = 0
    while at + _HEADER.size <= len(data):
        size, checksum = _HEADER.unpack_from(data, at)
        record = data[at + _HEADER.size : at + _HEADER.size + size]
        if len(record) != size or zlib.crc32(record) != checksum:
            return
        yield record
        at += _HEADER.size + size
