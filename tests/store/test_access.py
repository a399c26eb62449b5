"""Servers that want a password or speak TLS: standalone, behind Sentinels, in a Cluster."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from certificates import Certificates, can_be_made
from clusters import Cluster, Sentinels
from ledger_calls import DAY_MS, Call, now_ms
from nodes import OPEN, Access, Node
from servers import debian_redis

from extauthz.archive import Archive, ArchiveDirectory, ArchiveWriter, Chain
from extauthz.ledger import (
    Applied,
    Balance,
    Change,
    Outcome,
    Override,
    Reserved,
    Seal,
    Sealed,
)
from extauthz.service.rebuild import Rebuilder
from extauthz.store.base import StoreError, StoreUnavailableError
from extauthz.store.failures import NEEDED_ACL
from extauthz.store.redis import RedisStore

PASSWORD, SENTINEL_PASSWORD = "word-of-the-store", "word-of-the-sentinels"
TIMEOUT_S = 8.0
"""A Sentinel has a quarter of it, and several TLS handshakes at once take their time."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Redis is asked for, as the embedded Valkey is built without TLS."""
    if not can_be_made() or debian_redis() is None:
        pytest.skip("no openssl or no redis-server on this machine: TLS has not been tried")
    return Certificates.made_in(tmp_path_factory.mktemp("ca"))


@contextlib.contextmanager
def running(node: Node) -> Iterator[Node]:
    try:
        node.start()
        yield node
    finally:
        node.remove()


async def one_call(url: str) -> None:
    """Reserve, settle and read: everything that a command needs is allowed and understood."""
    store, call = RedisStore.from_url(url, command_timeout_s=TIMEOUT_S), Call()
    try:
        await store.check_ready()
        assert isinstance(await store.reserve(call.reserve()), Reserved)
        assert (await store.settle(call.settle())).outcome is Outcome.SETTLED
        assert await store.balances(call.org, call.keys, now_ms()) == (Balance(700), Balance(70))
    finally:
        await store.close()


async def refusal(url: str) -> str:
    """Why a store that cannot be used says it cannot."""
    store = RedisStore.from_url(url, command_timeout_s=TIMEOUT_S)
    try:
        with pytest.raises(StoreUnavailableError) as raised:
            await store.reserve(Call().reserve())
        with pytest.raises(StoreError):
            await store.check_ready()
    finally:
        await store.close()
    return str(raised.value)


async def test_a_server_with_a_password_serves_who_knows_it_and_says_what_others_lack() -> None:
    with running(Node("server", access=Access(PASSWORD))) as node:
        await one_call(f"redis://:{PASSWORD}@{node.place}")
        await one_call(f"redis://default:{PASSWORD}@{node.place}/0")
        for wrong in ("", ":guessed-word@", f"nobody:{PASSWORD}@"):
            told = await refusal(f"redis://{wrong}{node.place}")
            assert "it wants another user or password; see store.url" in told
            assert node.place in told
            assert "guessed-word" not in told
            assert PASSWORD not in told


@pytest.mark.parametrize("group", [Sentinels, Cluster])
async def test_a_user_with_the_documented_rights_can_do_all_that_the_ledger_does(
    group: type[Sentinels] | type[Cluster],
) -> None:
    with group() as servers:
        for node in servers.nodes:
            if node not in getattr(servers, "sentinels", []):
                node.ask("ACL", "SETUSER", "ledger", "on", f">{PASSWORD}", *NEEDED_ACL.split())
                node.ask("ACL", "SETUSER", "default", "resetpass", ">another")
        await one_call(servers.url.replace("://", f"://ledger:{PASSWORD}@"))
        told = await refusal(servers.url.replace("://", "://ledger:guessed-word@"))
        assert "another user or password" in told
        assert "guessed-word" not in told


ACL_FILE = Path(__file__).parents[2] / "deploy" / "users.acl"
FORBIDDEN = (
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "CONFIG SET maxmemory-policy allkeys-lru",
    "CONFIG REWRITE",
    "SHUTDOWN",
    "ACL LIST",
    "CLIENT LIST",
    "CLIENT KILL ID 1",
    "REPLICAOF 127.0.0.1 1",
    "SCRIPT FLUSH",
    "FUNCTION LIST",
    "MONITOR",
    "RENAME xa1:a xa1:b",
    "SWAPDB 0 1",
    "GET another-programs-key",
    "SET another-programs-key 1",
    "PUBLISH channel message",
    "EVAL return(redis.call('FLUSHALL')) 0",
    "EVAL return(redis.call('GET',KEYS[1])) 1 another-programs-key",
)


class OfThisSystem(Access):
    """A server of the operating system's Redis, without a password."""

    @property
    def binary(self) -> str:
        return debian_redis() or "redis-server"


@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_the_shipped_acl_file_lets_the_ledger_do_its_work_and_nothing_else(
    kind: str, tmp_path: Path
) -> None:
    """Everything that a service, an audit, a rebuild and the commands do; forbidden is the rest."""
    if kind == "redis" and debian_redis() is None:
        pytest.skip("no redis-server on this machine: the ACL file has been tried with Valkey only")
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    refused = r"(?i)permission|can't run|can't access"
    file = tmp_path / "users.acl"
    file.touch()
    access = OfThisSystem() if kind == "redis" else OPEN
    with running(Node("server", "--aclfile", str(file), access=access)) as node:
        file.write_text(ACL_FILE.read_text().replace("SHA256-OF-ITS-PASSWORD", digest))
        node.ask("ACL", "LOAD")
        url = f"redis://extauthz:{PASSWORD}@{node.place}"
        await one_call(url)
        await everything_else(url, tmp_path)
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            for words in FORBIDDEN:
                with pytest.raises(redis.ResponseError, match=refused):
                    client.execute_command(*words.split())
        with contextlib.closing(node.client()) as anybody, pytest.raises(redis.AuthenticationError):
            anybody.ping()


async def everything_else(url: str, folder: Path) -> None:
    """What one call does not: keys, overrides, leases, archiving, audits, and a rebuild."""
    store, call = RedisStore.from_url(url, command_timeout_s=TIMEOUT_S), Call()
    org, key_hash = call.org, f"sha256:{'0' * 64}"

    def change(id_: str, what: Change, target: str, **fields: Any) -> Override:
        at_ms = now_ms()
        return Override(id_, org, at_ms, what, target, at_ms + DAY_MS, **fields)

    try:
        for one in (
            change("o1", Change.SET, "agent/bot/day/usd", amount=5),
            change("o2", Change.PAUSE, "agent:bot"),
            change("o3", Change.RESUME, "agent:bot"),
            change("o4", Change.ADMIT, "agent:bot", key_hash=key_hash),
        ):
            assert await store.override(one) is Applied.APPLIED
        assert await store.key(org, key_hash) is not None
        ended, given_back, late = call.sibling(), call.sibling(), call.sibling()
        for each in (ended, given_back, late):
            assert isinstance(await store.reserve(each.reserve(lease_ms=DAY_MS)), Reserved)
        assert await store.renew(ended.renew())
        await store.settle(ended.settle())
        await store.release(given_back.release())
        await store.expire(org, now_ms(), DAY_MS, 10)
        assert await store.open_ids(org) == [late.id]
        assert await store.unconfirmed_ids(org) == []
        assert await store.reservations(org, [late.id])
        assert (await store.overrides(org, now_ms())).keys
        rows = await store.rows(org, 0, 100)
        archive = Archive(ArchiveDirectory(folder / "books"), Chain(org))
        writer = ArchiveWriter(archive)
        writer.append(rows)
        await store.note_behind(org, now_ms(), 0, None)
        await store.claim_archive(org, "me", now_ms(), now_ms() + DAY_MS)
        seal = Seal(org, now_ms(), "me", now_ms() + DAY_MS, 0, writer.last_seq, writer.last_hash)
        assert await store.seal(seal) is Sealed.SEALED
        await store.standing(org)
        keys = await store.bookkeeping.counter_keys(org)
        await store.bookkeeping.cut(org, keys)
        assert await store.bookkeeping.close(org, (await store.standing(org)).last_seq)
        rebuilder = Rebuilder(store, store.bookkeeping, archive, now_ms, DAY_MS)
        await rebuilder.rebuild(org, reason="tried")
        assert await store.key(org, key_hash) is not None
    finally:
        await store.close()


def test_the_acl_file_says_what_the_error_message_says() -> None:
    (line,) = (one for one in ACL_FILE.read_text().splitlines() if "extauthz" in one)
    assert line.endswith(NEEDED_ACL)


async def test_sentinels_and_their_primary_each_have_a_password_of_their_own() -> None:
    with Sentinels(access=Access(PASSWORD), sentinel_password=SENTINEL_PASSWORD) as servers:
        await one_call(servers.url)
        sentinels_only = servers.url.replace(f":{PASSWORD}@", "")
        assert servers.primary.place in await refusal(sentinels_only)
        told = await refusal(servers.url.partition("?")[0])
        assert all(sentinel.place in told for sentinel in servers.sentinels)
        assert "?sentinel_password=" in told
        guessed = await refusal(f"{servers.url}-guessed")
        for word in (PASSWORD, SENTINEL_PASSWORD):
            assert word not in told
            assert word not in guessed


async def test_a_cluster_wants_the_same_password_on_every_node() -> None:
    with Cluster(access=Access(PASSWORD)) as cluster:
        for _ in range(6):  # orgs on several of its nodes
            await one_call(cluster.url)
        told = await refusal(cluster.url.replace(f":{PASSWORD}@", ""))
        assert "another user or password" in told


async def test_a_server_with_tls_serves_who_trusts_its_ca(certificates: Certificates) -> None:
    with running(Node("server", access=Access(PASSWORD, certificates))) as node:
        url = f"rediss://:{PASSWORD}@{node.place}/0"
        await one_call(f"{url}?ssl_ca_certs={certificates.ca}")


async def test_a_certificate_of_a_ca_that_nobody_trusts_is_refused_and_told(
    certificates: Certificates, tmp_path: Path
) -> None:
    other = Certificates.made_in(tmp_path)
    with running(Node("server", access=Access(tls=certificates))) as node:
        for options in ("", f"?ssl_ca_certs={other.ca}"):
            told = await refusal(f"rediss://{node.place}{options}")
            assert "of a CA that is not trusted here" in told
            assert "?ssl_ca_certs=" in told
            assert node.place in told


async def test_a_certificate_for_another_host_is_refused_and_told(
    certificates: Certificates, tmp_path: Path
) -> None:
    elsewhere = Certificates.made_in(tmp_path, "DNS:store.example")
    with running(Node("server", access=Access(tls=elsewhere))) as node:
        told = await refusal(f"rediss://{node.place}?ssl_ca_certs={elsewhere.ca}")
        assert "its certificate is not for this host" in told


@pytest.mark.parametrize("name", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
@pytest.mark.parametrize("kind", ["", "+sentinel", "+cluster"])
def test_a_file_that_cannot_be_read_is_told_at_once(kind: str, name: str) -> None:
    with pytest.raises(StoreError, match=f"{name}: /no/such.pem cannot be read"):
        RedisStore.from_url(f"rediss{kind}://127.0.0.1:1/0?{name}=/no/such.pem")


async def test_a_server_without_tls_is_not_spoken_to_in_the_clear(
    certificates: Certificates,
) -> None:
    with running(Node("server", access=OPEN)) as node:
        told = await refusal(f"rediss://{node.place}?ssl_ca_certs={certificates.ca}")
        assert node.place in told


async def test_sentinels_and_a_cluster_are_spoken_to_with_tls_throughout(
    certificates: Certificates,
) -> None:
    access = Access(PASSWORD, certificates)
    with Cluster(access=access) as cluster:
        for _ in range(6):
            await one_call(f"{cluster.url}?ssl_ca_certs={certificates.ca}")
    with Sentinels(access=access, sentinel_password=SENTINEL_PASSWORD) as sentinels:
        await one_call(f"{sentinels.url}&ssl_ca_certs={certificates.ca}")
