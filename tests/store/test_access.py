"""Servers that want a password or speak TLS: standalone, behind Sentinels, in a Cluster."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Certificates, can_be_made
from clusters import Cluster, Sentinels
from ledger_calls import Call, now_ms
from nodes import OPEN, Access, Node
from servers import debian_redis

from extauthz.ledger import Balance, Outcome, Reserved
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
