"""The stores that the suites here run against: in memory, Valkey, Redis, several of them."""

from collections.abc import AsyncIterator, Iterator

import pytest
from clusters import Cluster, Sentinels
from servers import Server, debian_redis

from extauthz.store import script
from extauthz.store.base import LedgerStore
from extauthz.store.memory import MemoryStore
from extauthz.store.redis import RedisStore

PATIENT_S = 30
"""For tests of what a store does, not of what a busy machine keeps it from doing in time."""


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """A Valkey for all tests of a worker: each test has an org, and so keys, of its own."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def redis_7() -> Iterator[Server]:
    """The Redis of the operating system: the oldest version that is supported, on Debian 12."""
    binary = debian_redis()
    if binary is None:
        pytest.skip("no redis-server on this machine: the suite has not run against Redis")
    with Server(binary) as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[Server]:
    """A Valkey for one test, which may freeze it, kill it or change its settings."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes for all tests of a worker, which leave them as they were."""
    with Cluster() as nodes:
        yield nodes


@pytest.fixture(scope="session")
def sentinels() -> Iterator[Sentinels]:
    """A primary that Sentinels know, for all tests of a worker, which let it live."""
    with Sentinels() as nodes:
        yield nodes


@pytest.fixture(params=["memory", "valkey", "redis", "cluster", "sentinel"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[LedgerStore]:
    """Every store in turn."""
    if request.param == "memory":
        yield MemoryStore()
        return
    fixtures = {"redis": "redis_7", "sentinel": "sentinels"}
    servers = request.getfixturevalue(fixtures.get(request.param, request.param))
    redis_store = RedisStore.from_url(servers.url, command_timeout_s=PATIENT_S)
    yield redis_store
    await redis_store.close()


@pytest.fixture(params=["valkey", "redis"])
def any_server(request: pytest.FixtureRequest) -> Server:
    """Each real server in turn."""
    server: Server = request.getfixturevalue("valkey" if request.param == "valkey" else "redis_7")
    return server


@pytest.fixture
async def redis_store(any_server: Server) -> AsyncIterator[RedisStore]:
    """A `RedisStore` on each real server in turn."""
    store = RedisStore.from_url(any_server.url, command_timeout_s=PATIENT_S)
    yield store
    await store.close()


@pytest.fixture
def without_skew_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that believe every caller's clock: the server's own cannot be moved."""
    for name in (
        "RESERVE",
        "SETTLE",
        "RELEASE",
        "RENEW",
        "EXPIRE",
        "OVERRIDE",
        "OPEN",
        "CLAIM",
        "SEAL",
        "BEHIND",
    ):
        text = getattr(script, name).text
        believing = text.replace("CLOCK_SKEW_MS_MAX = 1000", "CLOCK_SKEW_MS_MAX = 1e15")
        assert believing != text
        monkeypatch.setattr(script, name, script.Script(believing))
    monkeypatch.setattr("extauthz.store.redis.CLOCK_SKEW_MS_MAX", 10**15)
