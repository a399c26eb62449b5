"""Commands about one imaginary call, and the ledger's table as rows, for every suite that needs it.

The table is the one in the docstring of `extauthz.ledger`.
"""

import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from extauthz.ledger import (
    AlreadyEnded,
    Charge,
    Ending,
    Hold,
    Ledger,
    Outcome,
    Override,
    Refused,
    Release,
    Renew,
    Reserve,
    Reserved,
    Settle,
    State,
)
from extauthz.store.base import LedgerStore, counter_key

DAY_MS = 86_400_000
AMOUNTS = (1000, 100)
"""What a call holds on each of its two counters; the second is always a tenth of the first."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Expire:
    """`LedgerStore.expire` as a value."""

    org: str
    at_ms: int
    settle_horizon_ms: int = DAY_MS
    count: int = 100


Command = Reserve | Settle | Release | Renew | Expire | Override


@dataclass(frozen=True)
class Call:
    """One call of an agent; it holds AMOUNTS, and its lease has run out unless said otherwise."""

    org: str = field(default_factory=lambda: f"org-{uuid4().hex}")
    id: str = field(default_factory=lambda: str(uuid4()))

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(counter_key(self.org, budget, 0) for budget in ("day", "month"))

    def sibling(self) -> "Call":
        """Another call on the same counters."""
        return Call(org=self.org)

    def reserve(
        self,
        amount: int = 1000,
        *,
        limit: int = 10_000,
        lease_ms: int = -1,
        at_ms: int | None = None,
        forget_in_ms: int = 30 * DAY_MS,
        enforcing: tuple[bool, bool] = (True, True),
        transient: tuple[bool, bool] = (False, False),
    ) -> Reserve:
        at_ms = now_ms() if at_ms is None else at_ms
        holds = tuple(
            Hold(key, a, most, at_ms + forget_in_ms, enforcing=enforcing[n], transient=transient[n])
            for n, (key, a, most) in enumerate(
                zip(self.keys, (amount, amount // 10), (limit, limit // 10), strict=True)
            )
        )
        return Reserve(self.id, self.org, at_ms, at_ms + lease_ms, holds)

    def settle(
        self,
        cost: int = 700,
        *,
        age_ms: int = 0,
        horizon_ms: int = DAY_MS,
        at_ms: int | None = None,
        forget_in_ms: int = 30 * DAY_MS,
    ) -> Settle:
        at_ms = now_ms() if at_ms is None else at_ms
        charges = tuple(
            Charge(key, c, at_ms + forget_in_ms)
            for key, c in zip(self.keys, (cost, cost // 10), strict=True)
        )
        return Settle(self.id, self.org, at_ms, at_ms - age_ms, horizon_ms, charges)

    def release(self, *, horizon_ms: int = DAY_MS, at_ms: int | None = None) -> Release:
        at_ms = now_ms() if at_ms is None else at_ms
        return Release(self.id, self.org, at_ms, horizon_ms, self.keys)

    def renew(self, *observed: int, lease_ms: int = -1, at_ms: int | None = None) -> Renew:
        at_ms = now_ms() if at_ms is None else at_ms
        return Renew(self.id, self.org, at_ms, at_ms + lease_ms, observed)

    def expire(self, *, horizon_ms: int = DAY_MS, at_ms: int | None = None) -> Expire:
        at_ms = now_ms() if at_ms is None else at_ms
        return Expire(self.org, at_ms, horizon_ms)


async def tell(store: LedgerStore, command: Command) -> Any:
    """Give a store a command, whichever it is."""
    match command:
        case Reserve():
            return await store.reserve(command)
        case Settle():
            return await store.settle(command)
        case Release():
            return await store.release(command)
        case Renew():
            return await store.renew(command)
        case Override():
            return await store.override(command)
        case Expire(org, at_ms, horizon_ms, count):
            return await store.expire(org, at_ms, horizon_ms, count)


def tell_ledger(ledger: Ledger, command: Command) -> Any:
    """Give the specification a command, whichever it is."""
    match command:
        case Reserve():
            return ledger.reserve(command)
        case Settle():
            return ledger.settle(command)
        case Release():
            return ledger.release(command)
        case Renew():
            return ledger.renew(command)
        case Override():
            return ledger.override(command)
        case Expire(_, at_ms, horizon_ms, count):
            due = ledger.due(at_ms, count)
            return [ending for id_ in due if (ending := ledger.expire(id_, at_ms, horizon_ms))]


@dataclass(frozen=True)
class Row:
    """One line of the table: where the reservation stands, what comes, what follows."""

    start: str
    event: str
    then: State | None
    answer: Any
    """An `Outcome`, a class of answer, or the value itself."""
    spent: int = 0
    """What the first counter gains; the second gains a tenth of it."""
    held: int = 0

    def __str__(self) -> str:
        return f"{self.start}, {self.event}"


STARTS = {
    "unknown": (),
    "held": ("reserve",),
    "held, 1500 seen": ("reserve", "renew with 1500 seen"),
    "expired": ("reserve", "expire"),
    "released": ("reserve", "release"),
    "released unseen": ("release",),
    "settled": ("reserve", "settle"),
    "settled for nothing": ("reserve", "settle for nothing"),
    "recovered": ("settle",),
    "settled late": ("reserve", "expire", "settle"),
}
"""The events that bring a reservation to where a row starts."""


def event(call: Call, name: str) -> Command:
    return {
        "reserve": call.reserve,
        "reserve too much": lambda: call.reserve(20_000),
        "settle": call.settle,
        "settle for nothing": lambda: call.settle(0),
        "settle for more than was held": lambda: call.settle(20_000),
        "settle another cost": lambda: call.settle(710),
        "settle too old": lambda: call.settle(age_ms=2 * DAY_MS),
        "settle where the counters are forgotten": lambda: Call(
            f"{call.org}-unused", call.id
        ).settle(forget_in_ms=-1),
        "release": call.release,
        "renew": call.renew,
        "renew with 1500 seen": lambda: call.renew(1500, 150),
        "expire": call.expire,
    }[name]()


async def brought_to(store: LedgerStore, start: str) -> Call:
    """A call that stands where a row starts, on counters that other calls have used."""
    call = Call()
    await store.reserve(call.sibling().reserve(2000, lease_ms=DAY_MS))
    other = call.sibling()
    await store.reserve(other.reserve(2000, lease_ms=DAY_MS))
    await store.settle(other.settle(5000))
    for name in STARTS[start]:
        await tell(store, event(call, name))
    return call


HELD, SETTLED, RELEASED, EXPIRED = State.HELD, State.SETTLED, State.RELEASED, State.EXPIRED
TABLE = [
    Row("unknown", "reserve", HELD, Reserved, held=1000),
    Row("unknown", "reserve too much", None, Refused),
    Row("unknown", "release", RELEASED, Outcome.RELEASED),
    Row("unknown", "settle", SETTLED, Outcome.RECOVERED, spent=700),
    Row("unknown", "settle too old", None, Outcome.DEAD_LETTER),
    Row("unknown", "settle where the counters are forgotten", None, Outcome.DEAD_LETTER),
    Row("unknown", "renew", None, False),
    Row("unknown", "expire", None, []),
    Row("held", "reserve", HELD, Reserved),
    Row("held", "reserve too much", HELD, Reserved),
    Row("held", "renew", HELD, True),
    Row("held", "settle", SETTLED, Outcome.SETTLED, spent=700, held=-1000),
    Row("held", "settle for nothing", SETTLED, Outcome.SETTLED, held=-1000),
    Row("held", "settle too old", SETTLED, Outcome.SETTLED, spent=700, held=-1000),
    Row(
        "held", "settle for more than was held", SETTLED, Outcome.SETTLED, spent=20_000, held=-1000
    ),
    Row("held", "release", RELEASED, Outcome.RELEASED, held=-1000),
    Row("held", "expire", EXPIRED, Outcome.EXPIRED, spent=1000, held=-1000),
    Row("held, 1500 seen", "expire", EXPIRED, Outcome.EXPIRED, spent=1500, held=-1000),
    Row("held, 1500 seen", "settle", SETTLED, Outcome.SETTLED, spent=700, held=-1000),
    Row("expired", "reserve", EXPIRED, AlreadyEnded),
    Row("expired", "renew", EXPIRED, False),
    Row("expired", "expire", EXPIRED, []),
    Row("expired", "settle", SETTLED, Outcome.LATE, spent=700 - 1000),
    Row("expired", "settle for more than was held", SETTLED, Outcome.LATE, spent=20_000 - 1000),
    Row("expired", "release", SETTLED, Outcome.LATE, spent=-1000),
    Row("released", "reserve", RELEASED, AlreadyEnded),
    Row("released", "renew", RELEASED, False),
    Row("released", "expire", RELEASED, []),
    Row("released", "release", RELEASED, Outcome.DUPLICATE),
    Row("released", "settle", SETTLED, Outcome.ANOMALY, spent=700),
    Row("released unseen", "reserve", RELEASED, AlreadyEnded),
    Row("released unseen", "renew", RELEASED, False),
    Row("released unseen", "release", RELEASED, Outcome.DUPLICATE),
    Row("released unseen", "settle", SETTLED, Outcome.ANOMALY, spent=700),
    Row("settled", "reserve", SETTLED, AlreadyEnded),
    Row("settled", "renew", SETTLED, False),
    Row("settled", "expire", SETTLED, []),
    Row("settled", "settle", SETTLED, Outcome.DUPLICATE),
    Row("settled", "settle another cost", SETTLED, Outcome.CONFLICT),
    Row("settled", "settle for nothing", SETTLED, Outcome.CONFLICT),
    Row("settled", "release", SETTLED, Outcome.CONFLICT),
    Row("settled for nothing", "release", SETTLED, Outcome.DUPLICATE),
    Row("settled for nothing", "settle", SETTLED, Outcome.CONFLICT),
    Row("recovered", "reserve", SETTLED, AlreadyEnded),
    Row("recovered", "settle", SETTLED, Outcome.DUPLICATE),
    Row("recovered", "settle another cost", SETTLED, Outcome.CONFLICT),
    Row("recovered", "release", SETTLED, Outcome.CONFLICT),
    Row("settled late", "settle", SETTLED, Outcome.DUPLICATE),
    Row("settled late", "settle another cost", SETTLED, Outcome.CONFLICT),
    Row("settled late", "release", SETTLED, Outcome.CONFLICT),
]


def is_as_expected(row: Row, answer: Any) -> bool:
    """Whether a command was answered as its row says."""
    if isinstance(row.answer, Outcome):
        if isinstance(answer, list):  # expire answers for all that were due
            return [ending.outcome for ending in answer] == [row.answer]
        return isinstance(answer, Ending) and answer.outcome is row.answer
    if isinstance(row.answer, type):
        return isinstance(answer, row.answer)
    return bool(answer == row.answer)


def state_probe(call: Call) -> Reserve:
    """A reserve that never fits: its answer tells where the reservation stands."""
    return call.reserve(1, limit=0)


def probed_state(answer: Any) -> State | None:
    match answer:
        case AlreadyEnded(_, state):
            return state
        case Reserved():
            return State.HELD
    return None
