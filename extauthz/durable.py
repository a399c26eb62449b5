"""Files that are on disk when a call returns, whatever happens to the machine after it."""

import os
from pathlib import Path

PART_SUFFIX = ".part"
"""Of a file that is not there yet: what a crash leaves of it, nobody reads."""


def write_file(path: Path, data: bytes, flags: int = os.O_CREAT | os.O_TRUNC) -> None:
    """Write the bytes to a file of its owner alone.

    Raises:
        OSError: they are not, or not all, on disk.
    """
    descriptor = os.open(path, os.O_WRONLY | flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Put a whole file in the place of another: who reads sees the one or the other.

    Raises:
        OSError: it may not be on disk.
    """
    part = path.with_name(path.name + PART_SUFFIX)
    write_file(part, data)
    part.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Or a crash could lose the name of a file whose bytes are on disk.

    Raises:
        OSError: the names may not be on disk.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
