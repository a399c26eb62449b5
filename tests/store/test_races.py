"""Several processes on one store: the room is given out exactly once."""

import asyncio
import sys
from pathlib import Path

import pytest
from ledger_calls import Call, now_ms
from servers import Server

from extauthz.ledger import Balance
from extauthz.store.redis import RedisStore

PROCESSES, AT_ONCE, ROOM = 4, 20, 4
RACER = Path(__file__).with_name("racer.py")


async def race(server: Server, rounds: int) -> None:
    racers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *(str(RACER), server.url, str(AT_ONCE), str(ROOM)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(PROCESSES)
    ]
    store = RedisStore.from_url(server.url)
    for racer in racers:
        assert racer.stdout is not None
        assert await racer.stdout.readline() == b"ready\n"
    for _ in range(rounds):
        call = Call()
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(f"{call.org}\n".encode())
        admitted = [int(await racer.stdout.readline()) for racer in racers if racer.stdout]
        assert sum(admitted) == ROOM, admitted
        assert (await store.balances(call.org, call.keys, now_ms()))[0] == Balance(held=1000 * ROOM)
        assert await store.open_reservations(call.org) == ROOM
    for racer in racers:
        await racer.communicate(b"")  # without input it would leave stdin open
        assert racer.returncode == 0
    await store.close()


async def test_four_processes_share_out_room_for_four_exactly(any_server: Server) -> None:
    await race(any_server, rounds=10)


@pytest.mark.full
@pytest.mark.timeout(900)
async def test_four_processes_share_out_room_for_four_exactly_a_thousand_times(
    any_server: Server,
) -> None:
    await race(any_server, rounds=1000)
