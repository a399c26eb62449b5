"""Streams of several leases: what Envoy tells of them while they go on keeps their leases from
running out, and they are settled into the window in which they began.

At the default lease of 15 minutes and an entry every quarter of it, half an hour is two leases and
eight entries; here a lease is 10 seconds, and a midnight comes at the end of each minute.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from load import MESSAGES
from servers import until
from sidecar import Sidecar, agent, running_sidecar

LEASE_SECONDS = 10
LEASES, LEASES_FULL = 2, 12
PROVIDERS = ("openai", "anthropic")
SIZES = [LEASES, pytest.param(LEASES_FULL, marks=[pytest.mark.full, pytest.mark.timeout(600)])]


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for leases in (LEASES, LEASES_FULL):
        for provider in PROVIDERS:
            budgets = [{"limit": "1.00", "window": window} for window in ("total", "minute")]
            agents |= agent(name_of(provider, leases), budgets=budgets)
    with running_sidecar(agents=agents, defaults={"lease": f"{LEASE_SECONDS}s"}) as running:
        yield running


def name_of(provider: str, leases: int) -> str:
    return f"{provider}-{leases}"


@pytest.mark.parametrize("leases", SIZES)
def test_a_stream_of_several_leases_over_midnight_is_spent_exactly_on_the_day_it_began(
    sidecar: Sidecar, leases: int
) -> None:
    seconds = leases * LEASE_SECONDS + 2
    to_midnight = 60 - time.time() % 60
    seconds = max(seconds, int(to_midnight) + 3)
    names = [name_of(provider, leases) for provider in PROVIDERS]
    with ThreadPoolExecutor() as pool, store_of(sidecar) as store:
        streams = [
            pool.submit(read_stream, sidecar, provider, name_of(provider, leases), seconds)
            for provider in PROVIDERS
        ]
        until(lambda: all(open_records(store, name) for name in names))
        began = {name: open_records(store, name)[0] for name in names}
        moves = lease_moves(store, lambda: all(stream.done() for stream in streams))
        for stream in streams:
            stream.result()

    for name in names:
        until(lambda name=name: sidecar.balance(name, "total")[1] == 0)
        bill = sidecar.sandbox.total_nanousd(name)
        assert sidecar.balance(name, "total") == (bill, 0)
        [minute] = [value for value in began[name].values() if f"{name}/minute/" in value]
        with store_of(sidecar) as store:
            assert store.hmget(minute, "spent", "held") == [str(bill), "0"]
        assert sidecar.balance(name, "minute") == (0, 0), "it was spent on the day it ended, too"
    assert len(moves) == len(names)
    # Each entry moves the lease on; without them it would have run out in the middle.
    assert all(times > leases for times in moves.values()), moves
    assert {line["outcome"] for line in sidecar.log_lines("settlement")} == {"settled"}


def read_stream(sidecar: Sidecar, provider: str, name: str, seconds: int) -> None:
    headers = {
        "x-sandbox-chunks": str(4 * seconds),
        "x-sandbox-chunk-delay-ms": "250",
    }
    fields: Any = {
        "messages": MESSAGES,
        "max_tokens": 50,
        "stream": True,
        "extra_headers": headers,
    }
    answer: Any = (
        sidecar.openai(name).chat.completions.create(model="gpt-4o-mini", user=name, **fields)
        if provider == "openai"
        else sidecar.anthropic(name).messages.create(
            model="claude-haiku-4-5", metadata={"user_id": name}, **fields
        )
    )
    with answer:
        for _ in answer:
            pass


def store_of(sidecar: Sidecar) -> "redis.Redis":
    path = sidecar.data_dir / "run" / "store.sock"
    return redis.Redis(unix_socket_path=str(path), decode_responses=True)


def open_records(store: "redis.Redis", name: str) -> list[dict[str, str]]:
    """An agent's reservations that have not ended, as the store keeps them."""
    records = [store.hgetall(key) for key in store.scan_iter("xa1:{default}:r:*", count=1000)]
    return [
        record
        for record in records
        if record.get("state") == "held" and f"agent/{name}/" in record["k1"]
    ]


def lease_moves(store: "redis.Redis", is_over: Callable[[], bool]) -> dict[str, int]:
    """By reservation, how often its lease was moved on until it was over."""
    seen: dict[str, set[float]] = {}
    while not is_over():
        for id_, until_ms in store.zrange("xa1:{default}:leases", 0, -1, withscores=True):
            seen.setdefault(id_, set()).add(until_ms)
        time.sleep(0.1)
    return {id_: len(times) - 1 for id_, times in seen.items()}
