"""Do the counters agree with the books? Asked of a live system, without stopping it.

A *cut* shows some counters, the open reservations and the number of the last row at one instant; no
command lies half inside it. What a counter must show as spent is the sum of the rows up to that
number. What it must show as held is what the open reservations of the cut hold: each is still there
and unchanged when it is looked at later, or it has ended since, and then the row of its ending says
what it held. So nothing that moves meanwhile can look like an error.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from extauthz.ids import uuid7
from extauthz.ledger import (
    State,
    counter_name,
)
from extauthz.service.audit_reader import Audit, BooksReader, Past
from extauthz.service.drift import Drift, held_by, held_drift, spent_drift
from extauthz.service.rules import Clock
from extauthz.store.base import StoredReservation, counter_key_of
from extauthz.store.bookkeeping import Correction, Cut

_AT_ONCE = 500
_KEPT_MS = 35 * 86_400_000
"""How long a counter without a TTL is kept that neither a row nor a reservation knows: longer than
any window but `total` and the year."""
_REPAIRS_MAX = 50
"""How often a repair is tried on a counter that moves between looking and setting."""


class Standing(Protocol):
    """The store, as an audit sees it."""

    async def counter_keys(self, org: str) -> list[str]:
        """The keys of all counters."""

    async def cut(self, org: str, keys: Sequence[str]) -> Cut:
        """Some counters, what is open, and the last row, at one instant."""

    async def repair(
        self,
        org: str,
        key: str,
        corrections: Sequence[Correction],
        *,
        id_: str,
        at_ms: int,
        seen_seq: int,
        forget_at_ms: int,
        particulars: str,
    ) -> bool:
        """Set a counter if nothing has moved on it since it was seen."""


class Records(Protocol):
    """The reservations of the store."""

    async def reservations(self, org: str, ids: Sequence[str]) -> dict[str, StoredReservation]:
        """How these stand."""


@dataclass(slots=True)
class _Seen:
    """A cut of some counters."""

    at_ms: int
    """just after it: whatever had left a window by then may be gone from it"""
    keys: Sequence[str]
    cut: Cut


class Auditor:
    """Compares, and repairs where it is told to."""

    def __init__(self, standing: Standing, records: Records, clock: Clock) -> None:
        self._standing = standing
        self._records = records
        self._clock = clock

    async def audit(self, org: str, past: Past) -> Audit:
        """Compare every counter of an org with the books.

        Raises:
            StoreError: the store does not answer, or has no books.
        """
        return (await self._audit(org, past)).audit

    async def repair(self, org: str, past: Past, *, reason: str) -> tuple[Audit, list[Drift]]:
        """Audit, and set each drifting counter to what the books say, each with a row.

        A counter is set only if nothing has moved on it since it was compared, else it is compared
        again. Returns what was found, and what could not be set.

        Raises:
            StoreError: the store does not answer, or has no books.
        """
        reader = await self._audit(org, past)
        found, left = list(reader.audit.drifts), []
        for key in dict.fromkeys(drift.key for drift in found):
            for _ in range(_REPAIRS_MAX):
                reader.audit.drifts.clear()
                seen = await self._look(org, [key])
                await self._compare(org, [seen], reader)
                now = list(reader.audit.drifts)
                if not now or await self._set(org, seen, now, reason):
                    break
            else:
                left += now
        reader.audit.drifts[:] = found
        return reader.audit, left

    async def _audit(self, org: str, past: Past) -> BooksReader:
        audit = Audit(org)
        reader = BooksReader(past, audit, past.checkpoint())
        keys = await self._standing.counter_keys(org)
        chunks = list(_chunks(keys)) or [()]
        seen = [await self._look(org, chunk) for chunk in chunks]
        audit.open = len(seen[0].cut.open_ids)
        await self._compare(org, seen, reader)
        # What rows or holds know and the store did not: lost, or made since the store was asked.
        known = {counter_name(key) for key in keys}
        missing = sorted({*reader.tally.counters, *reader.kept_for_holds} - known)
        for chunk in _chunks([counter_key_of(org, name) for name in missing]):
            await self._compare(org, [await self._look(org, chunk)], reader)
        audit.last_seq = reader.tally.last_seq
        return reader

    async def _look(self, org: str, keys: Sequence[str]) -> _Seen:
        cut = await self._standing.cut(org, keys)
        return _Seen(self._clock(), keys, cut)

    async def _compare(self, org: str, seen: Sequence[_Seen], reader: BooksReader) -> None:
        drifts = reader.audit.drifts
        await self._find_held(org, seen, reader)
        for one in seen:
            await reader.read_to(one.cut.last_seq)
            for key, fields in zip(one.keys, one.cut.counters, strict=True):
                drifts += spent_drift(key, fields, reader.tally, one.at_ms)
            reader.audit.counters += len(one.keys)
        if reader.wanted - reader.held.keys():
            await reader.read_on()
        for id_ in reader.wanted - reader.held.keys():
            reader.audit.findings.append(f"{id_} is open, but neither a record nor a row knows it")
        for one in seen:
            due = held_by(one.cut.open_ids, reader.held)
            for key, fields in zip(one.keys, one.cut.counters, strict=True):
                name = counter_name(key)
                drifts += held_drift(key, fields, due[name], reader.forget_at_ms(name))
        reader.wanted.clear()
        reader.held.clear()

    async def _find_held(self, org: str, seen: Sequence[_Seen], reader: BooksReader) -> None:
        """What the reservations hold that were open at any of the cuts."""
        ids = list(dict.fromkeys(id_ for one in seen for id_ in one.cut.open_ids))
        for chunk in _chunks(ids):
            records = await self._records.reservations(org, chunk)
            for id_ in chunk:
                record = records.get(id_)
                if record is not None and record.state is State.HELD:
                    names = map(counter_name, record.keys)
                    reader.held[id_] = dict(zip(names, record.held, strict=True))
                    reader.keep(record.counters)
                else:
                    reader.wanted.add(id_)

    async def _set(self, org: str, seen: _Seen, drifts: Sequence[Drift], reason: str) -> bool:
        at_ms, (key,) = self._clock(), seen.keys
        words = {
            "counter": counter_name(key),
            "reason": reason,
            **{drift.what: f"{drift.shown} -> {drift.due}" for drift in drifts},
        }
        return await self._standing.repair(
            org,
            key,
            [correction for drift in drifts for correction in drift.corrections],
            id_=uuid7(at_ms),
            at_ms=at_ms,
            seen_seq=seen.cut.last_seq,
            forget_at_ms=max(drift.forget_at_ms for drift in drifts) or at_ms + _KEPT_MS,
            particulars=json.dumps(words, separators=(",", ":")),
        )


def _chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(items), _AT_ONCE):
        yield items[at : at + _AT_ONCE]
