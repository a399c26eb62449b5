"""Do the counters agree with the books? Asked of a live system, without stopping it.

A *cut* shows some counters, the open reservations and the number of the last row at one instant; no
command lies half inside it. What a counter must show as spent is the sum of the rows up to that
number. What it must show as held is what the open reservations of the cut hold: each is still there
and unchanged when it is looked at later, or it has ended since, and then the row of its ending says
what it held. So nothing that moves meanwhile can look like an error.
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from extauthz.ids import uuid7
from extauthz.ledger import (
    Counter,
    Row,
    RowGapError,
    RowOutcome,
    State,
    Tally,
    counter_name,
    oldest_bucket,
    width_of,
)
from extauthz.service.rules import Clock
from extauthz.store.base import StoredReservation, counter_key_of
from extauthz.store.bookkeeping import Correction, Cut, Fields

_AT_ONCE = 500
_KEPT_MS = 35 * 86_400_000
"""How long a counter is kept that no row knows: longer than any window but `total` and the year."""
_REPAIRS_MAX = 50
"""How often a repair is tried on a counter that moves between looking and setting."""
_FINDINGS_MAX = 100
_NEARLY_FORGOTTEN_MS = 5_000

_FIRST_ENDINGS = frozenset(
    {
        RowOutcome.SETTLED,
        RowOutcome.RELEASED,
        RowOutcome.ABANDONED,
        RowOutcome.EXPIRED_UNCONFIRMED,
        RowOutcome.RECOVERED,
    }
)


class Past(Protocol):
    """The rows of an org, wherever they are kept."""

    def checkpoint(self) -> Tally:
        """What is added up already; the rows after it follow."""

    def rows(self, after_seq: int) -> AsyncIterator[Row]:
        """Every row after a number, in order, up to the last one there is."""


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
        forget_at_ms: int,
        particulars: str,
    ) -> bool:
        """Set a counter if it still shows what was seen."""


class Records(Protocol):
    """The reservations of the store."""

    async def reservations(self, org: str, ids: Sequence[str]) -> dict[str, StoredReservation]:
        """How these stand."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A counter that does not show what it must. Amounts are in its budget's unit."""

    key: str
    what: str
    """`spent` or `held`"""
    shown: int
    due: int
    corrections: tuple[Correction, ...]
    forget_at_ms: int

    @property
    def counter(self) -> str:
        """The counter as rows name it."""
        return counter_name(self.key)

    @property
    def amount(self) -> int:
        """How much too much it shows."""
        return self.shown - self.due


@dataclass(slots=True)
class Audit:
    """What an audit has found.

    Attributes:
        org: whose books.
        last_seq: up to which row.
        rows: how many rows were read after the checkpoint.
        counters: how many counters were compared.
        open: how many reservations were open at the first cut.
        drifts: counters that do not show what the books say.
        findings: what is wrong with the books themselves, in words.
    """

    org: str
    last_seq: int = 0
    rows: int = 0
    counters: int = 0
    open: int = 0
    drifts: list[Drift] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether everything agrees."""
        return not self.drifts and not self.findings


@dataclass(slots=True)
class _Seen:
    """A cut of some counters."""

    at_ms: int
    keys: Sequence[str]
    cut: Cut


@dataclass(slots=True)
class _Reader:
    """Reads the books on, row by row, and keeps what the cuts need."""

    past: Past
    audit: Audit
    tally: Tally
    wanted: set[str] = field(default_factory=set)
    """open at a cut, but ended when they were looked at: their rows say what they held"""
    held: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """what each held on each counter, by its name"""
    _ended: set[int] = field(default_factory=set)
    _rows: AsyncIterator[Row] | None = None

    async def read_to(self, seq: int) -> None:
        """Add the rows up to a number."""
        while self.tally.last_seq < seq:
            if not await self._read_one():
                self._find(f"row {self.tally.last_seq + 1} is missing: the books end before it")
                self.tally.last_seq = seq

    async def read_on(self) -> None:
        """Add what was written meanwhile."""
        while await self._read_one():
            pass

    async def _read_one(self) -> bool:
        row = None if self._rows is None else await anext(self._rows, None)
        if row is None:  # at its end, or not begun
            self._rows = self.past.rows(self.tally.last_seq)
            row = await anext(self._rows, None)
        if row is None:
            self._rows = None
            return False
        try:
            self.tally.add(row)
        except RowGapError as error:
            self._find(str(error))
            self.tally.last_seq = row.seq - 1
            self.tally.add(row)
        self.audit.rows += 1
        self._note(row)
        return True

    def _note(self, row: Row) -> None:
        if row.outcome in _FIRST_ENDINGS:
            if (mark := hash(row.id)) in self._ended:
                self._find(f"row {row.seq}: the reservation {row.id} has ended before")
            self._ended.add(mark)
        if row.id in self.wanted and any(posting.held for posting in row.postings):
            self.held[row.id] = {posting.counter: posting.held for posting in row.postings}

    def _find(self, what: str) -> None:
        if len(self.audit.findings) < _FINDINGS_MAX:
            self.audit.findings.append(what)


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

        A counter is set only if it still shows what was compared; one that moves is compared
        again. Returns what was found, and what could not be set.

        Raises:
            StoreError: the store does not answer, or has no books.
        """
        reader = await self._audit(org, past)
        found, left = list(reader.audit.drifts), []
        for key in dict.fromkeys(drift.key for drift in found):
            for _ in range(_REPAIRS_MAX):
                reader.audit.drifts.clear()
                await self._compare(org, [await self._look(org, [key])], reader)
                now = list(reader.audit.drifts)
                if not now or await self._set(org, key, now, reason):
                    break
            else:
                left += now
        reader.audit.drifts[:] = found
        return reader.audit, left

    async def _audit(self, org: str, past: Past) -> _Reader:
        audit = Audit(org)
        reader = _Reader(past, audit, past.checkpoint())
        keys = await self._standing.counter_keys(org)
        chunks = list(_chunks(keys)) or [()]
        seen = [await self._look(org, chunk) for chunk in chunks]
        audit.open = len(seen[0].cut.open_ids)
        await self._compare(org, seen, reader)
        # What the rows know and the store did not: lost, or made since the store was asked.
        known = {counter_name(key) for key in keys}
        missing = [name for name in sorted(reader.tally.counters) if name not in known]
        for chunk in _chunks([counter_key_of(org, name) for name in missing]):
            await self._compare(org, [await self._look(org, chunk)], reader)
        audit.last_seq = reader.tally.last_seq
        return reader

    async def _look(self, org: str, keys: Sequence[str]) -> _Seen:
        at_ms = self._clock()
        return _Seen(at_ms, keys, await self._standing.cut(org, keys))

    async def _compare(self, org: str, seen: Sequence[_Seen], reader: _Reader) -> None:
        drifts = reader.audit.drifts
        await self._find_held(org, seen, reader)
        for one in seen:
            await reader.read_to(one.cut.last_seq)
            for key, fields in zip(one.keys, one.cut.counters, strict=True):
                drifts += _spent_drift(key, fields, reader.tally, one.at_ms)
            reader.audit.counters += len(one.keys)
        if reader.wanted - reader.held.keys():
            await reader.read_on()
        for id_ in reader.wanted - reader.held.keys():
            reader.audit.findings.append(f"{id_} is open, but neither a record nor a row knows it")
        for one in seen:
            due = _held_by(one.cut.open_ids, reader.held)
            for key, fields in zip(one.keys, one.cut.counters, strict=True):
                drifts += _held_drift(key, fields, due[counter_name(key)])
        reader.wanted.clear()
        reader.held.clear()

    async def _find_held(self, org: str, seen: Sequence[_Seen], reader: _Reader) -> None:
        """What the reservations hold that were open at any of the cuts."""
        ids = list(dict.fromkeys(id_ for one in seen for id_ in one.cut.open_ids))
        for chunk in _chunks(ids):
            records = await self._records.reservations(org, chunk)
            for id_ in chunk:
                record = records.get(id_)
                if record is not None and record.state is State.HELD:
                    names = map(counter_name, record.keys)
                    reader.held[id_] = dict(zip(names, record.held, strict=True))
                else:
                    reader.wanted.add(id_)

    async def _set(self, org: str, key: str, drifts: Sequence[Drift], reason: str) -> bool:
        at_ms = self._clock()
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
            forget_at_ms=max(drift.forget_at_ms for drift in drifts) or at_ms + _KEPT_MS,
            particulars=json.dumps(words, separators=(",", ":")),
        )


def _spent_drift(key: str, fields: Fields, tally: Tally, at_ms: int) -> list[Drift]:
    """How what is spent differs, if it does; a counter about to be forgotten may be gone."""
    name, width_ms = counter_name(key), width_of(key)
    counter = tally.counters.get(name, Counter(0))
    if not fields and counter.forget_at_ms <= at_ms + _NEARLY_FORGOTTEN_MS:
        return []
    shows = {field: n for field, n in fields.items() if field != "held"}
    if width_ms is None:
        says = {"spent": counter.spent}
    else:
        says = {str(bucket): n for bucket, n in counter.buckets.items()}
        oldest = oldest_bucket(at_ms, width_ms)
        shows = {bucket: n for bucket, n in shows.items() if int(bucket) >= oldest}
        says = {bucket: n for bucket, n in says.items() if int(bucket) >= oldest}
    corrections = tuple(
        Correction(field, shows.get(field), says.get(field, 0))
        for field in sorted({*shows, *says})
        if shows.get(field, 0) != says.get(field, 0)
    )
    if not corrections:
        return []
    shown, due = sum(shows.values()), sum(says.values())
    return [Drift(key, "spent", shown, due, corrections, counter.forget_at_ms)]


def _held_drift(key: str, fields: Fields, due: int) -> list[Drift]:
    shown = fields.get("held", 0)
    if shown == due:
        return []
    return [Drift(key, "held", shown, due, (Correction("held", fields.get("held"), due),), 0)]


def _held_by(ids: Iterable[str], held: Mapping[str, Mapping[str, int]]) -> Mapping[str, int]:
    """What these reservations hold on each counter together."""
    total: dict[str, int] = defaultdict(int)
    for id_ in ids:
        for counter, amount in held.get(id_, {}).items():
            total[counter] += amount
    return total


def _chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(items), _AT_ONCE):
        yield items[at : at + _AT_ONCE]
