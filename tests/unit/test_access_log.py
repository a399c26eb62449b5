"""The sink makes every entry safe, whatever stands beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extauthz.servicers.access_log import AccessLogServicer
from extauthz.store.spool import Spool


class Settler:
    """Takes what it is given, as far as it can."""

    def __init__(self) -> None:
        self.is_away = False
        self.taken: set[str] = set()

    async def settle(self, calls: Sequence[Any]) -> list[Any]:
        if any(call.record.reservation_id == "bad" for call in calls):
            raise RuntimeError("an error of this program")
        if self.is_away:
            return list(calls)
        self.taken |= {call.record.reservation_id for call in calls}
        return []


class Call:
    """As much of a completed call as the sink looks at."""

    def __init__(self, data: bytes) -> None:
        self.record = self
        self.reservation_id = data.decode()


class Observer:
    unreadable = 0

    def unreadable_entry(self) -> None:
        self.unreadable += 1


def sink_of(settler: Settler, spool: Spool, observer: Observer, monkeypatch: Any) -> Any:
    sink: Any = AccessLogServicer(settler, {}, None, spool, observer)  # type: ignore[arg-type]
    monkeypatch.setattr(sink, "_read", Call)
    return sink


async def test_an_entry_that_cannot_be_settled_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: Any
) -> None:
    settler, observer = Settler(), Observer()
    sink = sink_of(settler, Spool(tmp_path), observer, monkeypatch)

    assert await sink.settle([b"one", b"bad", b"two"]) == []

    assert settler.taken == {"one", "two"}
    assert observer.unreadable == 1


async def test_what_the_store_did_not_take_is_still_left_beside_it(
    tmp_path: Path, monkeypatch: Any
) -> None:
    settler = Settler()
    sink = sink_of(settler, Spool(tmp_path), Observer(), monkeypatch)

    settler.is_away = True

    assert await sink.settle([b"one", b"bad", b"two"]) == [b"one", b"two"]
