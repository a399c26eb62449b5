"""Where the files of an archive lie: a directory for each org, or whatever else can do the same.

Files are written whole or appended to, and never changed in the middle, so an object store that
appends (or that takes a new object for each append) can serve as well.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from extauthz.archive.errors import ArchiveError
from extauthz.durable import PART_SUFFIX, replace_file, sync_directory, write_file

"""The suffix of a file that is being written; one that was left over by a crash is nothing."""


class ArchiveStorage(Protocol):
    """The files of one org. Every method may raise `ArchiveError`."""

    @property
    def place(self) -> str:
        """How errors name it."""

    def names(self) -> list[str]:
        """All files, in order; none if there is no archive yet."""

    def read(self, name: str, offset: int, count: int) -> bytes:
        """Up to `count` bytes, fewer only at the end of the file."""

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file; what is added is on disk when this returns.

        After an error the end of the file may have a part of it.
        """

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whole, new or instead of an old one: a crash leaves the old or the new."""

    def cut(self, name: str, size: int) -> None:
        """Drop what a file has beyond a size."""

    def lock(self) -> AbstractContextManager[bool]:
        """Be the only one who writes, if nobody else is: whether one is, until this is left."""


class ArchiveDirectory:
    """An `ArchiveStorage` in a directory, whose files only their owner may read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def place(self) -> str:
        """The directory."""
        return str(self._directory)

    def names(self) -> list[str]:
        """See `ArchiveStorage`."""
        try:
            names = sorted(path.name for path in self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._failed("cannot be read", self._directory, error) from error
        return [name for name in names if not name.endswith(PART_SUFFIX)]

    def read(self, name: str, offset: int, count: int) -> bytes:
        """See `ArchiveStorage`."""
        path = self._directory / name
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                data = b""
                while len(data) < count and (more := file.read(count - len(data))):
                    data += more
                return data
        except OSError as error:
            raise self._failed("cannot be read", path, error) from error

    def append(self, name: str, data: bytes) -> None:
        """See `ArchiveStorage`."""
        path = self._directory / name
        try:
            write_file(path, data, os.O_APPEND)
        except OSError as error:
            raise self._failed("cannot be written", path, error) from error

    def replace(self, name: str, data: bytes) -> None:
        """See `ArchiveStorage`."""
        path = self._directory / name
        try:
            self._make()
            replace_file(path, data)
        except OSError as error:
            raise self._failed("cannot be written", path, error) from error

    def cut(self, name: str, size: int) -> None:
        """See `ArchiveStorage`."""
        path = self._directory / name
        try:
            descriptor = os.open(path, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failed("cannot be written", path, error) from error

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """See `ArchiveStorage`. A process that ends, however that comes, has left it."""
        try:
            self._make()
            descriptor = os.open(self._directory, os.O_RDONLY)
        except OSError as error:
            raise self._failed("cannot be written", self._directory, error) from error
        try:
            yield _is_locked(descriptor)
        finally:
            os.close(descriptor)

    def _make(self) -> None:
        if not self._directory.exists():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(self._directory.parent)

    def _failed(self, what: str, path: Path, error: OSError) -> ArchiveError:
        return ArchiveError(f"{path}: {what} ({error.strerror})")


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
