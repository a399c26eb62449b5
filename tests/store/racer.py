"""One process of test_races: for every org that it reads, reserve many times at once."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ledger_calls import Call

from extauthz.ledger import Reserved
from extauthz.store.redis import RedisStore


async def main(url: str, at_once: int, room: int) -> None:
    store = RedisStore.from_url(url)
    await store.check_ready()
    print("ready", flush=True)
    while org := (await asyncio.to_thread(sys.stdin.readline)).strip():
        calls = [Call(org=org) for _ in range(at_once)]
        limit = 1000 * room + 999
        answers = await asyncio.gather(*(store.reserve(c.reserve(limit=limit)) for c in calls))
        assert [answer.id for answer in answers] == [call.id for call in calls]
        print(sum(isinstance(answer, Reserved) for answer in answers), flush=True)
    await store.close()


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
