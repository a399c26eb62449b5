"""What ends while the store is away waits on disk, whatever becomes of the service, and is settled
in its order when the store is back."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from load import Load, Streams
from outages import answers, frozen, is_drained, spool_files, surprises
from servers import until
from sidecar import Sidecar, agent, running_sidecar

from extauthz.pb import access_log_pb2
from extauthz.service.call_record import CallRecord
from extauthz.servicers.translate import record_text
from extauthz.store import spool

STREAMS = 12
AGENTS = ("early", "late", "crowd", "survivor", "survivors-crowd")


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    """Leases are as long as they are in production: none ends a call before its entry does."""
    agents = {}
    for name in AGENTS:
        agents |= agent(name, "1000.00")
    with running_sidecar(agents=agents, defaults={"hold_wait": "100ms"}) as running:
        yield running


def test_what_ends_while_the_store_is_away_is_settled_in_its_order(sidecar: Sidecar) -> None:
    with (
        Load(sidecar, "crowd") as load,
        Streams(sidecar, "late", 6, STREAMS) as late,
        Streams(sidecar, "early", 2, STREAMS) as early,
    ):
        with frozen(sidecar, "store"):
            for name, streams in (("early", early), ("late", late)):
                streams.join()
                until(lambda name=name: len(spooled(sidecar, name)) == STREAMS)
            until(lambda: sidecar.metric("extauthz_spool_depth") >= 2 * STREAMS)
            waiting = [record.reservation_id for record in spooled(sidecar)]
            until(lambda: load.failed > 0)
        more_calls(load)

    for name in ("early", "late", "crowd"):
        assert_spent_is_the_bill(sidecar, name)
    # The file of the same log may have been faster with some; the queue tells of all the same.
    assert is_in_order(waiting, endings(sidecar))


def test_what_waits_outlives_the_service_and_needs_no_other_witness(sidecar: Sidecar) -> None:
    service = sidecar.pid_of("service")
    known = settled_or_spooled(sidecar, "survivors-crowd")
    with Load(sidecar, "survivors-crowd") as load:
        more_calls(load)
        with Streams(sidecar, "survivor", 4, STREAMS) as streams, frozen(sidecar, "store"):
            streams.join()
            until(lambda: len(spooled(sidecar, "survivor")) == STREAMS)
            load.stop()
            until(lambda: settled_or_spooled(sidecar, "survivors-crowd") == known + load.completed)
            sidecar.kill("service")
            os.truncate(sidecar.data_dir / "access_log.jsonl", 0)
            assert len(spool_files(sidecar)) > 1, "one segment has but one order"
            waiting = [record.reservation_id for record in spooled(sidecar)]
    until(lambda: answers(sidecar) and sidecar.pid_of("service") != service, 40)

    assert_spent_is_the_bill(sidecar, "survivor")
    # A reserve that was under way as the store froze may hold still: its call was refused, and the
    # witness of that was the file of the log. Its lease ends it; no call that was made has one.
    until(lambda: is_paid(sidecar, "survivors-crowd"), 40)
    until(lambda: is_drained(sidecar))
    assert not surprises(sidecar)
    assert is_in_order(waiting, endings(sidecar))


def more_calls(load: Load, count: int = 30) -> None:
    done = load.completed
    until(lambda: load.completed > done + count, 60)


def assert_spent_is_the_bill(sidecar: Sidecar, name: str) -> None:
    until(lambda: sidecar.balance(name)[1] == 0, 40)
    assert is_paid(sidecar, name)
    assert not surprises(sidecar)
    until(lambda: is_drained(sidecar))


def is_paid(sidecar: Sidecar, name: str) -> bool:
    return sidecar.balance(name)[0] == sidecar.sandbox.total_nanousd(name) > 0


def spooled(sidecar: Sidecar, name: str | None = None) -> list[CallRecord]:
    """The calls, of one agent or of all, whose entries are on disk now, oldest first."""
    records = [record_of(entry) for path in spool_files(sidecar) for entry in entries_of(path)]
    return [record for record in records if name in (None, record.agent)]


def entries_of(segment: Path) -> list[bytes]:
    try:
        return list(spool._read(segment))
    except FileNotFoundError:  # all of it was taken meanwhile
        return []


def record_of(entry: bytes) -> CallRecord:
    text = record_text(access_log_pb2.HTTPAccessLogEntry.FromString(entry))
    assert text is not None, "an entry of no reserved call waits for the store"
    return CallRecord.from_json(text)


def settled_or_spooled(sidecar: Sidecar, name: str) -> int:
    """How many calls of an agent the service knows the end of."""
    settled = {
        line["reservation_id"]
        for line in sidecar.log_lines("settlement")
        if line.get("agent") == name
    }
    return len(settled | {record.reservation_id for record in spooled(sidecar, name)})


def endings(sidecar: Sidecar) -> list[str]:
    """The reservations that were settled, in that order; duplicates too."""
    return [line["reservation_id"] for line in sidecar.log_lines("settlement")]


def is_in_order(wanted: Iterable[str], found: Iterable[str]) -> bool:
    """Whether all of the one come in the other, in the same order; others may come between."""
    rest = iter(found)
    return all(one in rest for one in wanted)
