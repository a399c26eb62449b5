"""One caller's huge or contrived body delays nobody else's, and costs no reader for good."""

import asyncio
import contextlib
import itertools
import json
import os
import signal

import pytest
import pytest_asyncio
from service_rules import until

from extauthz.providers import ADAPTERS
from extauthz.providers.base import Request, RequestError, RequestFacts
from extauthz.reasons import Reason
from extauthz.servicers.body_reader import INLINE_BYTES_MAX, BodyReader, _Reader
from extauthz.servicers.body_worker import VALUES_MAX, read

SMALL = b'{"model":"gpt-4o","messages":[]}'


def chat(size: int, **fields: object) -> bytes:
    """A body of about this size whose model stands behind everything else."""
    return json.dumps(
        {
            "messages": [{"role": "user", "content": "x" * size}],
            "stream": True,
            **fields,
            "model": "gpt-4o",
        }
    ).encode()


LARGE = chat(INLINE_BYTES_MAX)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader():
    # So much time that a busy machine refuses none: what takes too long has a test of its own.
    reader = BodyReader(read_seconds_max=120)
    await reader.start()
    yield reader
    await reader.stop()


async def ask(reader: BodyReader, body: bytes, caller: str = "bot") -> RequestFacts:
    return await reader.read("openai", "chat", Request(body), caller=caller)


async def reason_of(reader: BodyReader, body: bytes, caller: str = "bot") -> Reason:
    with pytest.raises(RequestError) as caught:
        await ask(reader, body, caller)
    return caught.value.reason


def pids(reader: BodyReader) -> list[int]:
    return [one._process.pid for one in reader._all if one._process is not None]


@contextlib.asynccontextmanager
async def held_up(reader: BodyReader):
    """The process that has a body does not run: that body is under way as long as the block."""
    await until(lambda: reader._idle.qsize() == 1)  # most of it has yet to be written
    idle = {one._process.pid for one in reader._idle._queue}
    (busy,) = set(pids(reader)) - idle
    os.kill(busy, signal.SIGSTOP)
    yield
    os.kill(busy, signal.SIGCONT)


@pytest.mark.parametrize("size", [10, INLINE_BYTES_MAX, 1_000_000, 20_000_000])
async def test_a_large_body_has_the_facts_that_reading_it_at_once_has(reader, size):
    body = chat(size, max_completion_tokens=5, service_tier="flex", n=3)
    assert await ask(reader, body) == ADAPTERS["openai"].read_request("chat", Request(body))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (LARGE + b"x", Reason.UNPARSEABLE_BODY),
        (LARGE[:-1] + b',"n":1,"n":2}', Reason.AMBIGUOUS_BODY),
        (LARGE[:-1] + b',"web_search_options":{}}', Reason.UNMETERED_ENDPOINT),
        (LARGE[:-1] + b',"a":1e999}', Reason.UNPARSEABLE_BODY),
        (b'{"a":' + b"9" * 2_000_000 + b"}", Reason.UNPARSEABLE_BODY),
    ],
)
async def test_a_large_body_is_refused_for_the_reason_that_a_small_one_is(reader, body, reason):
    before = pids(reader)
    assert await reason_of(reader, body) is reason
    assert pids(reader) == before


def many_keys(count: int = 300_000) -> bytes:
    return b"{" + b",".join(b'"k%07d":1' % n for n in range(count)) + b"}"


CONTRIVED = {
    "4 MB of 300,000 keys": many_keys,
    "27 MB of []": lambda: b'{"a":[' + b"[]," * 9_000_000 + b"1]}",
    "27 MB of commas": lambda: b'{"a":[' + b"1," * 13_500_000 + b"1]}",
    "20 MB of brackets": lambda: b"[" * 20_000_000,
}


@pytest.mark.parametrize("name", CONTRIVED)
async def test_while_a_contrived_body_is_read_and_refused_other_bodies_are_read(reader, name):
    body = CONTRIVED[name]()
    contrived = asyncio.create_task(reason_of(reader, body, "hostile"))
    async with held_up(reader):
        assert (await ask(reader, SMALL, "other")).model == "gpt-4o"
        assert (await ask(reader, LARGE, "other")).model == "gpt-4o"
        assert not contrived.done()

    assert await contrived in (Reason.BODY_TOO_LARGE, Reason.UNPARSEABLE_BODY)
    assert (await ask(reader, LARGE, "hostile")).model == "gpt-4o"


async def test_one_agents_large_bodies_take_turns_and_leave_a_reader_to_others(reader):
    slow = [asyncio.create_task(ask(reader, chat(8_000_000), "greedy")) for _ in range(6)]
    async with held_up(reader):
        assert (await ask(reader, LARGE, "other")).model == "gpt-4o"
        assert reader._busy["greedy"] == 1
        assert not any(task.done() for task in slow)
    await asyncio.gather(*slow)
    assert not reader._busy


async def test_a_body_whose_reader_had_no_turn_is_to_be_sent_again():
    reader = BodyReader(readers=1, read_seconds_max=0.2)
    await reader.start()
    os.kill(pids(reader)[0], signal.SIGSTOP)

    assert await reason_of(reader, LARGE) is Reason.SERVICE_UNAVAILABLE

    await reader.stop()


async def test_a_body_that_takes_too_long_is_refused_and_its_reader_replaced(monkeypatch):
    spent = itertools.count()
    monkeypatch.setattr(_Reader, "cpu_seconds", lambda _: next(spent))
    reader = BodyReader(readers=1, read_seconds_max=0.01)
    await reader.start()
    before = pids(reader)

    assert await reason_of(reader, many_keys(1_800_000)) is Reason.BODY_TOO_LARGE

    await asyncio.gather(*reader._under_way)
    assert len(pids(reader)) == 1
    assert pids(reader) != before
    await reader.stop()


async def test_a_reader_that_is_killed_in_the_middle_is_replaced(reader):
    first = pids(reader)
    task = asyncio.create_task(reason_of(reader, many_keys()))
    await until(lambda: reader._idle.qsize() == 1)
    for pid in first:
        os.kill(pid, signal.SIGKILL)

    assert await task is Reason.BODY_TOO_LARGE

    for _ in range(2):  # both have died: one in the middle, one while it was idle
        try:
            facts = await ask(reader, LARGE)
        except RequestError:
            facts = await ask(reader, LARGE)
        assert facts.model == "gpt-4o"
    assert not set(first) & set(pids(reader))


async def test_a_caller_that_leaves_while_its_body_is_read_leaves_no_turn_taken(reader):
    task = asyncio.create_task(ask(reader, many_keys()))
    await until(lambda: reader._idle.qsize() == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (await ask(reader, LARGE)).model == "gpt-4o"
    await until(lambda: not reader._busy)


async def test_callers_that_leave_while_they_wait_for_their_turn_leave_none_taken(reader):
    first = asyncio.create_task(ask(reader, chat(8_000_000)))
    await until(lambda: reader._busy["bot"])
    waiting = [asyncio.create_task(ask(reader, LARGE)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert (await first).model == "gpt-4o"
    assert (await ask(reader, LARGE)).model == "gpt-4o"


async def test_callers_that_leave_while_all_readers_are_taken_lose_none(reader):
    taken = [asyncio.create_task(ask(reader, chat(8_000_000), f"a{n}")) for n in range(2)]
    await until(reader._idle.empty)
    waiting = [asyncio.create_task(ask(reader, LARGE, f"b{n}")) for n in range(5)]
    await until(lambda: all(reader._busy[f"b{n}"] for n in range(5)))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.gather(*taken)

    assert reader._idle.qsize() == 2
    await until(lambda: not +reader._busy)


async def test_the_child_counts_values_before_it_builds_any():
    body = b'{"a":[' + b"1," * VALUES_MAX + b"1]}"
    answer = read("openai", "chat", Request(body))
    assert isinstance(answer, RequestError)
    assert answer.reason is Reason.BODY_TOO_LARGE
