"""The files of Envoy's file access log: the current one, those rotated away, and a place in them.

A file is known by its inode, as rotation renames it, and by its first bytes, as an inode is used
again once a file is deleted.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from extauthz.durable import replace_file

_CHUNK_BYTES = 128 * 1024
"""About 50 lines: the reading of more would keep the event loop from other work."""

_LINE_BYTES_MAX = 16 * 1024 * 1024
_HEAD_BYTES = 256
_PACKED = frozenset({".gz", ".bz2", ".xz", ".zst"})


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file as it was found."""

    path: Path
    inode: int
    size: int
    changed_at: float


@dataclass(frozen=True, slots=True)
class Place:
    """Up to where the log has been read. `head` is the digest of the file's first bytes."""

    inode: int
    offset: int
    head: str

    @classmethod
    def load(cls, bookmark: Path) -> "Place | None":
        """The place that was saved; None if there is none (any more)."""
        try:
            fields = json.loads(bookmark.read_bytes())
            return cls(int(fields["inode"]), int(fields["offset"]), str(fields["head"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, bookmark: Path) -> None:
        """Replace the saved place; it is on disk when this returns."""
        replace_file(bookmark, json.dumps(asdict(self)).encode())


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The log `path` and what was rotated away from it: `path.*`, but for what is packed."""

    path: Path
    with_rotated: bool = True
    quiet_seconds: float = 5.0
    """so long after a rotation Envoy has written all that it had for the old file"""

    def found(self) -> list[LogFile]:
        """All files, in the order in which they were written."""
        rotated = [
            found
            for path in self.path.parent.glob(f"{self.path.name}.*")
            if self.with_rotated and path.suffix not in _PACKED and (found := _stat(path))
        ]
        rotated.sort(key=lambda file: (file.changed_at, file.path.name))
        current = _stat(self.path)
        return [*rotated, current] if current else rotated

    def find(self, place: Place | None, files: list[LogFile]) -> int | None:
        """Which of the files a place is in; None if it is in none of them."""
        for index, file in enumerate(files):
            if place and file.inode == place.inode and file.size >= place.offset:
                with suppress(OSError):
                    if _head(file.path, place.offset) == place.head:
                        return index
        return None

    def sizes(self) -> dict[int, int]:
        """How long each file is, by its inode."""
        return {file.inode: file.size for file in self.found()}

    def start(self) -> Place | None:
        """The beginning of the oldest file; None if there is no file."""
        files = self.found()
        return Place(files[0].inode, 0, _head(files[0].path, 0)) if files else None

    def read(
        self, place: Place | None, sizes: Mapping[int, int] | None = None
    ) -> tuple[list[bytes], Place] | None:
        """The next lines from a place on and the place behind them; None if there are none yet.

        Args:
            place: up to where the log has been read; if it is unknown, all is read.
            sizes: of each file only so much is read; None: all there is.
        """
        files = self.found()
        index = self.find(place, files)
        if index is None:
            place, index = self.start(), 0
        if place is None or not files:
            return None
        while True:
            file = files[index]
            until = file.size if sizes is None else min(file.size, sizes.get(file.inode, 0))
            lines, offset = _read(file, place.offset, until)
            if offset > place.offset:
                return lines, Place(file.inode, offset, _head(file.path, offset))
            is_last = index + 1 == len(files)
            if is_last or until < file.size or time.time() - file.changed_at < self.quiet_seconds:
                return None
            # What is left of it is a line that was never finished.
            index += 1
            place = Place(files[index].inode, 0, _head(files[index].path, 0))


def _stat(path: Path) -> LogFile | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return LogFile(path, found.st_ino, found.st_size, found.st_mtime)


def _read(file: LogFile, offset: int, until: int) -> tuple[list[bytes], int]:
    """Whole lines between two offsets, and where the last of them ends."""
    size = _CHUNK_BYTES
    with file.path.open("rb") as opened:
        if os.fstat(opened.fileno()).st_ino != file.inode:
            return [], offset  # rotated just now
        while True:
            opened.seek(offset)
            data = opened.read(min(size, until - offset)) if until > offset else b""
            end = data.rfind(b"\n") + 1
            if end:
                return data[: end - 1].split(b"\n"), offset + end
            if len(data) < size:
                return [], offset
            if size >= _LINE_BYTES_MAX:  # no line of Envoy's: skipped, and counted as unreadable
                return [b""], offset + len(data)
            size *= 2


def _head(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(min(offset, _HEAD_BYTES))).hexdigest()
