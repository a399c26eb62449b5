"""What `store.url` may say: one server, a primary that Sentinels know, or the nodes of a Cluster.

    redis://[user:password@]host:port/db           rediss:// with TLS, unix://path
    redis+sentinel://[user:password@]host:port,host:port/name-of-the-primary/db
    redis+cluster://[user:password@]host:port,host:port

In redis-py's own URLs every setting of a connection can be given and would override ours, protocol
and retries too; so only a few names pass.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from extauthz.store.base import StoreError

_OPTIONS = frozenset({"db", "password"})
_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
_FILES = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_SCHEMES = frozenset(
    f"{scheme}{kind}" for scheme in ("redis", "rediss") for kind in ("", "+sentinel", "+cluster")
) | {"unix"}
_PORT, _SENTINEL_PORT = 6379, 26379


class Kind(Enum):
    """How the servers behind a URL find their primary."""

    STANDALONE = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A URL that was read; `seeds` are the Sentinels or the first nodes of a Cluster."""

    kind: Kind
    text: str
    seeds: tuple[Address, ...] = ()
    primary_name: str = ""
    scheme: str = "redis"
    user: str = ""
    path: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL.

        Raises:
            StoreError: it says something that is not known, or would be taken for something else.
        """
        parts = urlsplit(text)
        options = tuple(parse_qsl(parts.query, keep_blank_values=True))
        scheme, _, kind = parts.scheme.partition("+")
        if parts.scheme not in _SCHEMES:
            raise StoreError(
                "store.url: write redis://, rediss://, unix://, redis+sentinel:// or "
                "redis+cluster:// (rediss+... with TLS)"
            )
        if not kind:
            _check_options(options, _OPTIONS)
            if scheme != "unix":
                _check_database(parts.path)
            return cls(Kind.STANDALONE, text)
        if kind == "cluster":
            return cls._cluster(text, scheme, parts, options)
        return cls._sentinel(text, scheme, parts, options)

    @classmethod
    def _cluster(
        cls, text: str, scheme: str, parts: SplitResult, options: tuple[tuple[str, str], ...]
    ) -> Self:
        _check_options(options, frozenset())
        if parts.path.strip("/") not in ("", "0"):
            raise StoreError("store.url: a Cluster has no databases, leave the path out")
        user, seeds = _seeds(parts.netloc, _PORT)
        return cls(Kind.CLUSTER, text, seeds, "", scheme, user, "", options)

    @classmethod
    def _sentinel(
        cls, text: str, scheme: str, parts: SplitResult, options: tuple[tuple[str, str], ...]
    ) -> Self:
        _check_options(options, _SENTINEL_OPTIONS)
        name, _, database = parts.path.strip("/").partition("/")
        if not name:
            raise StoreError(
                "store.url: name the primary as its Sentinels do, such as "
                "redis+sentinel://host:26379/mymaster"
            )
        _check_database(database)
        user, seeds = _seeds(parts.netloc, _SENTINEL_PORT)
        path = f"/{database}" if database else ""
        return cls(Kind.SENTINEL, text, seeds, name, scheme, user, path, options)

    def check_files(self) -> None:
        """Whether the files of its TLS options can be read.

        Raises:
            StoreError: one cannot, which redis-py would tell as a failed connection.
        """
        for name, path in parse_qsl(urlsplit(self.text).query):
            if name in _FILES:
                try:
                    Path(path).open("rb").close()
                except OSError as error:
                    raise StoreError(
                        f"store.url: {name}: {path} cannot be read ({error.strerror})"
                    ) from error

    def of_server(self, address: Address) -> str:
        """The URL of one server that keeps data."""
        return f"{self.scheme}://{self.user}{address}{self.path}{self._query()}"

    def of_sentinel(self, address: Address) -> str:
        """The URL of one Sentinel; it has users of its own."""
        given = dict(self.options)
        name, password = given.get("sentinel_username"), given.get("sentinel_password")
        user = "" if password is None else f"{quote(name or '', '')}:{quote(password, '')}@"
        return f"{self.scheme}://{user}{address}{self._query()}"

    def _query(self) -> str:
        passed_on = [(name, value) for name, value in self.options if name.startswith("ssl_")]
        return f"?{urlencode(passed_on)}" if passed_on else ""


def _check_options(options: tuple[tuple[str, str], ...], known: frozenset[str]) -> None:
    for name, _ in options:
        if name not in known and not name.startswith("ssl_"):
            names = ", ".join([*sorted(known), "ssl_..."])
            raise StoreError(f"store.url: {name} cannot be set there, only {names} can")


def _check_database(path: str) -> None:
    # redis-py would take a path that is no number for the first database.
    database = path.strip("/")
    if database and not (database.isascii() and database.isdecimal()):
        raise StoreError(f"store.url: {database!r} is no database number")


def _seeds(netloc: str, default_port: int) -> tuple[str, tuple[Address, ...]]:
    """The `user:password@` as it was written, and the addresses after it."""
    user, at, hosts = netloc.rpartition("@")
    return user + at, tuple(_address(host, default_port) for host in hosts.split(","))


def _address(text: str, default_port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port or default_port
    except ValueError as error:
        raise StoreError(f"store.url: {text!r} is not host:port ({error})") from error
    if host is None:
        raise StoreError(f"store.url: {text!r} is not host:port")
    return Address(host, port)
