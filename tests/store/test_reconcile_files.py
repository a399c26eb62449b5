"""Reconciling by hand: a line that cannot be settled is named, and keeps no other from it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from ledger_calls import DAY_MS, now_ms
from servers import Server

from extauthz.cli import main
from extauthz.ids import uuid7
from extauthz.ledger import Hold, Reserve
from extauthz.service.call_record import CallRecord, HeldPart
from extauthz.store.base import StoredReservation, counter_key
from extauthz.store.redis import RedisStore

ENDED = json.loads(
    (Path(__file__).parents[1] / "unit" / "access_log_lines.jsonl").read_bytes().splitlines()[0]
)
"""A line of a call that was answered, from a real run."""

KEY = counter_key("by-hand", "agent/bot/day/usd", 0)


def line_of(record: CallRecord, **fields: Any) -> bytes:
    line = ENDED | {"authz": {"call": record.to_json()}} | fields
    return json.dumps(line, separators=(",", ":"), sort_keys=True).encode() + b"\n"


async def reserved(store: RedisStore) -> CallRecord:
    at_ms = now_ms()
    record = CallRecord(
        uuid7(at_ms), uuid7(at_ms), "by-hand", "bot", "openai", "gpt-4o-mini", at_ms, DAY_MS,
        10**9, (HeldPart(KEY, "usd", 10**9, at_ms + DAY_MS),),
    )  # fmt: skip
    hold = Hold(KEY, 10**9, 10**12, at_ms + DAY_MS)
    await store.reserve(Reserve(record.reservation_id, "by-hand", at_ms, at_ms + DAY_MS, (hold,)))
    return record


async def test_what_cannot_be_settled_is_named_with_its_place_and_the_rest_goes_on(
    valkey: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = RedisStore.from_url(valkey.url)
    records = [await reserved(store) for _ in range(4)]
    first, foreign, mismatched, last = records
    foreign_part = HeldPart("no counter", "usd", 1, foreign.parts[0].forget_at_ms)
    other_part = HeldPart(counter_key("by-hand", "x", 0), "usd", 1, now_ms() + DAY_MS)
    lines = [
        line_of(first),
        b"no line\n",
        line_of(foreign._replace(parts=(foreign_part,))),
        line_of(mismatched._replace(parts=(other_part,))),
        line_of(last),
    ]
    log = tmp_path / "access.jsonl"
    log.write_bytes(b"".join(lines))
    config = tmp_path / "extauthz.yaml"
    config.write_text(
        json.dumps(
            {
                "store": {"url": valkey.url},
                "defaults": {"org": "by-hand"},
                "providers": {"openai": {"api": "openai", "upstream": "https://api.openai.com"}},
            }
        )
    )
    stored = await in_thread(config, log, store, records)

    said = capsys.readouterr()
    assert [stored[one.reservation_id].state for one in records] == [
        "settled", "held", "held", "settled"
    ]  # fmt: skip
    at = [sum(map(len, lines[:n])) for n in range(len(lines))]
    assert [text.split(": ")[0] for text in said.err.splitlines()] == [
        f"{log}, byte {at[n]}" for n in (1, 2, 3)
    ]
    assert mismatched.reservation_id in said.err
    assert "settled now: 2" in said.out
    assert "unreadable lines: 1" in said.out


async def in_thread(
    config: Path, log: Path, store: RedisStore, records: list[CallRecord]
) -> dict[str, StoredReservation]:
    """The command has a loop of its own; its exit status tells that something was left."""

    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(main, ["reconcile", "-c", str(config), "--log", str(log)])
    assert ended.value.code == 1
    stored = await store.reservations("by-hand", [one.reservation_id for one in records])
    await store.close()
    return stored
