"""One process of test_races: for every org that it reads, reserve many times at once, and, when it
is told to, settle what was admitted."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ledger_calls import Call

from extauthz.ledger import Outcome, Reserved
from extauthz.store.redis import RedisStore


async def main(url: str, at_once: int, room: int, amount: int) -> None:
    store = RedisStore.from_url(url)
    await store.check_ready()
    print("ready", flush=True)
    while org := (await asyncio.to_thread(sys.stdin.readline)).strip():
        calls = [Call(org=org) for _ in range(at_once)]
        limit = amount * room
        answers = await asyncio.gather(
            *(store.reserve(call.reserve(amount, limit=limit)) for call in calls)
        )
        assert [answer.id for answer in answers] == [call.id for call in calls]
        admitted = [
            call
            for call, answer in zip(calls, answers, strict=True)
            if isinstance(answer, Reserved)
        ]
        print(len(admitted), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        endings = await asyncio.gather(*(store.settle(call.settle(amount)) for call in admitted))
        assert all(ending.outcome is Outcome.SETTLED for ending in endings)
        print("settled", flush=True)
    await store.close()


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
