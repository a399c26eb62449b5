"""From the config to the archives of its orgs."""

import os
from collections.abc import Callable, Iterable

from extauthz.archive import Archive, ArchiveDirectory, ArchiveError, Chain
from extauthz.config import Config
from extauthz.server.data_dir import DataDir
from extauthz.store.base import LedgerStore

_KEY_BYTES_MIN = 32


def archives_of(config: Config) -> Callable[[str], Archive]:
    """Where each org's archive is, and the key that its lines are chained with.

    Raises:
        ArchiveError: the key cannot be read, or is no secret.
    """
    key, directory = _key(config), DataDir(config.data_dir).books
    return lambda org: Archive(ArchiveDirectory(directory / org), Chain(org, key))


def books_key_variables(config: Config) -> set[str]:
    """The environment variables that only who writes the books may see."""
    key = config.books.key
    return {key.env} if key and key.env else set()


def _key(config: Config) -> bytes | None:
    place = config.books.key
    if place is None:
        return None
    if place.env is not None:
        text = os.environb.get(place.env.encode(), b"")
        where = f"books.key.env: the variable {place.env}"
    else:
        assert place.file is not None
        where = f"books.key.file: {place.file}"
        try:
            text = place.file.read_bytes()
        except OSError as error:
            raise ArchiveError(f"{where} cannot be read ({error.strerror})") from error
    key = text.strip()
    if len(key) < _KEY_BYTES_MIN:
        raise ArchiveError(
            f"{where} has {len(key)} bytes: a key has at least {_KEY_BYTES_MIN}, "
            "for instance of 'openssl rand -hex 32'"
        )
    return key


def expect_archived(
    store: LedgerStore, archive_of: Callable[[str], Archive], orgs: Iterable[str]
) -> None:
    """Let no command open books anew of which rows were archived: the store has lost them then."""
    for org in orgs:
        try:
            has_rows = archive_of(org).last_seq > 0
        except ArchiveError:
            has_rows = True
        if has_rows:
            store.expect_books(org)
