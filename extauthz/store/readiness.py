"""Whether a server keeps what it is told: asked before the first request is let through."""

import logging
from collections.abc import Mapping
from typing import Any

from redis.exceptions import ResponseError

from extauthz.store.base import StoreError
from extauthz.store.connections import Connections
from extauthz.store.failures import unavailable

log = logging.getLogger(__name__)

_VERSION_MIN = (7, 0)  # PEXPIRETIME, and script flags


async def check_server(connections: Connections, *, require_durable: bool) -> None:
    """Raise `StoreError`: which setting is wrong, what it is, and the command that mends it."""
    place = connections.place
    facts: dict[str, str] = {}
    for reply in await connections.read(("INFO", "server"), ("INFO", "replication")):
        facts |= _facts(place, reply, "INFO", "info")
    _check_kind(place, facts)
    _advise(place, facts)
    settings = await _settings(connections, durability=require_durable)
    if settings["maxmemory"] != "0":
        _must_be(place, settings, "maxmemory-policy", "noeviction", "it would drop spent amounts")
    if require_durable:
        _must_be(place, settings, "appendonly", "yes", "a restart would forget what was spent")
        _must_be(place, settings, "appendfsync", "always", "a crash would forget what was spent")


def _check_kind(place: str, facts: Mapping[str, str]) -> None:
    version = tuple(int(part) for part in facts["redis_version"].split(".")[:2])
    if version < _VERSION_MIN:
        raise StoreError(
            f"the store at {place} is version {facts['redis_version']}: "
            "the ledger needs Redis 7.0, Valkey 8 or newer"
        )
    if facts["role"] != "master":
        raise StoreError(
            f"the store at {place} has the role {facts['role']}: store.url has to name the "
            f"primary, {facts.get('master_host', '?')}:{facts.get('master_port', '?')}"
        )


_advised: set[str] = set()


def _advise(place: str, facts: Mapping[str, str]) -> None:
    """Say once, of each primary with replicas, what bounds the loss of a fail-over.

    It is advice and no error: the setting makes no limit exact, as replication stays asynchronous,
    and it lets a lost replica stop all writes. Which of both is worse is for its owner to say.
    """
    # Servers tell the count of good replicas only where the setting is in force.
    if int(facts["connected_slaves"]) and "min_slaves_good_slaves" not in facts:
        if place in _advised:
            return
        _advised.add(place)
        log.warning(
            "the store at %s has replicas and accepts writes without them: a fail-over can lose "
            "more than a moment's writes; CONFIG SET min-replicas-to-write 1",
            place,
        )


async def _settings(connections: Connections, *, durability: bool) -> dict[str, str]:
    """INFO tells what memory does; how writes reach the disk only CONFIG GET does."""
    place = connections.place
    (memory,) = await connections.read(("INFO", "memory"))
    facts = _facts(place, memory, "INFO", "info")
    settings = {"maxmemory": facts["maxmemory"], "maxmemory-policy": facts["maxmemory_policy"]}
    if durability:
        names = ("appendonly", "appendfsync")
        replies = await connections.read(*(("CONFIG", "GET", name) for name in names))
        for reply in replies:
            settings |= _facts(place, reply, "CONFIG GET", "config|get")
    return settings


def _must_be(place: str, settings: Mapping[str, str], name: str, value: str, why: str) -> None:
    if settings.get(name) != value:
        raise StoreError(
            f"the store at {place} has {name} {settings.get(name, 'unknown')}, so {why}: "
            f"CONFIG SET {name} {value}, and the same in its configuration file"
        )


def _facts(place: str, reply: Any, command: str, permission: str) -> dict[str, str]:
    """Read `name:value` lines of INFO, or the flat list of CONFIG GET."""
    if isinstance(reply, ResponseError):
        raise StoreError(
            f"{unavailable(place, reply)}: to see whether it keeps what it is told, {command} "
            f"must be allowed, ACL SETUSER <user> +{permission}; or set require_durable to false"
        ) from reply
    if isinstance(reply, list):
        return dict(zip(reply[::2], reply[1::2], strict=True))
    pairs = (line.partition(":") for line in reply.splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}
