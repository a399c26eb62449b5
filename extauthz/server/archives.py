"""From the config to the archives of its orgs."""

import os
from collections.abc import Callable, Iterable

from extauthz.archive import Archive, ArchiveDirectory, ArchiveError, Chain
from extauthz.config import Config
from extauthz.durable import sync_directory
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


class SeenBooks:
    """Which orgs' books this `data_dir` has worked with, archived here or by another service.

    A store without them has lost them: who has seen them does not open new ones.
    """

    def __init__(self, config: Config) -> None:
        self._directory = DataDir(config.data_dir).books_seen
        self._noted: set[str] = set()

    def __contains__(self, org: str) -> bool:
        return (self._directory / org).exists()

    def add(self, org: str) -> None:
        """Note it; on disk when this returns.

        Raises:
            ArchiveError: it cannot be noted.
        """
        if org in self._noted:
            return
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            (self._directory / org).touch(mode=0o600)
            sync_directory(self._directory)
        except OSError as error:
            raise ArchiveError(
                f"{self._directory}: cannot be written ({error.strerror})"
            ) from error
        self._noted.add(org)


def expect_books(
    store: LedgerStore, config: Config, archive_of: Callable[[str], Archive], orgs: Iterable[str]
) -> None:
    """Let nobody open books anew that were seen or archived here: the store has lost them then."""
    seen = SeenBooks(config)
    for org in orgs:
        try:
            is_known = org in seen or archive_of(org).last_seq > 0
        except ArchiveError:
            is_known = True
        if is_known:
            store.expect_books(org)
