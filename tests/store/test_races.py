"""Several processes on one store: the room is given out exactly once."""

import asyncio
import sys
from pathlib import Path

import pytest
from ledger_calls import Call, now_ms
from servers import Server

from extauthz.ledger import Balance
from extauthz.store.redis import RedisStore

PROCESSES, ROOM = 4, 4
AMOUNT = 12_500_000
"""Nano-USD, of one call, which is both its cap and its cost; the limit is $0.05."""
RACER = Path(__file__).with_name("racer.py")


async def race(server: Server, rounds: int, calls: int) -> None:
    racers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *(str(RACER), server.url, str(calls // PROCESSES), str(ROOM), str(AMOUNT)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(PROCESSES)
    ]
    store = RedisStore.from_url(server.url)
    assert {await answer_of(racer) for racer in racers} == {"ready"}
    for _ in range(rounds):
        call = Call()
        for racer in racers:
            tell(racer, call.org)
        admitted = [int(await answer_of(racer)) for racer in racers]
        assert sum(admitted) == ROOM, admitted
        assert await balance(store, call) == Balance(held=ROOM * AMOUNT)
        assert await store.open_reservations(call.org) == ROOM
        for racer in racers:
            tell(racer, "settle")
        assert {await answer_of(racer) for racer in racers} == {"settled"}
        assert await balance(store, call) == Balance(spent=ROOM * AMOUNT)
        assert await store.open_reservations(call.org) == 0
    for racer in racers:
        await racer.communicate(b"")  # without input it would leave stdin open
        assert racer.returncode == 0
    await store.close()


def tell(racer: asyncio.subprocess.Process, line: str) -> None:
    assert racer.stdin is not None
    racer.stdin.write(f"{line}\n".encode())


async def answer_of(racer: asyncio.subprocess.Process) -> str:
    assert racer.stdout is not None
    return (await racer.stdout.readline()).decode().strip()


async def balance(store: RedisStore, call: Call) -> Balance:
    return (await store.balances(call.org, call.keys, now_ms()))[0]


async def test_of_twenty_calls_from_four_processes_those_are_admitted_that_the_limit_pays_for(
    any_server: Server,
) -> None:
    await race(any_server, rounds=10, calls=20)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("rounds", "calls"), [(100, 20), (1000, 80)])
async def test_so_are_they_in_many_rounds(any_server: Server, rounds: int, calls: int) -> None:
    await race(any_server, rounds, calls)
