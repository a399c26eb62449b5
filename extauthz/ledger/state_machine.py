"""The table of `extauthz.ledger` over plain dictionaries: the specification of every store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from extauthz.ledger.commands import (
    COUNTER_MAX,
    AlreadyEnded,
    Balance,
    CounterRangeError,
    Ending,
    Hold,
    HoldsMismatchError,
    Outcome,
    Paused,
    Refused,
    Release,
    Renew,
    Reserve,
    Reserved,
    Settle,
    State,
    fits_all,
)
from extauthz.ledger.overrides import Applied, Override, OverrideBook, lasts_longest
from extauthz.ledger.rolling import bucket_at, oldest_bucket, width_of, window_end_ms


@dataclass(slots=True)
class _Counter:
    forget_at_ms: int
    spent: int = 0
    """stays 0 in a rolling window"""
    held: int = 0
    buckets: dict[int, int] = field(default_factory=dict)
    """what is spent in a rolling window"""

    def balance(self, width_ms: int | None, at_ms: int) -> Balance:
        if width_ms is None:
            return Balance(self.spent, self.held)
        oldest = oldest_bucket(at_ms, width_ms)
        return Balance(sum(n for at, n in self.buckets.items() if at >= oldest), self.held)

    def correct(self, width_ms: int, at_ms: int, charged_at_ms: int, change: int) -> None:
        """Change the bucket that was charged, as long as it counts (see rolling.py)."""
        now, oldest = bucket_at(at_ms, width_ms), oldest_bucket(at_ms, width_ms)
        bucket = bucket_at(charged_at_ms, width_ms)
        if bucket < oldest:
            bucket, change = now, max(0, change)
        if change:
            self.buckets[bucket] = max(0, self.buckets.get(bucket, 0) + change)
        self.buckets = {at: n for at, n in self.buckets.items() if at >= oldest}


@dataclass(frozen=True, slots=True)
class _Move:
    """What one command does to one counter."""

    key: str
    forget_at_ms: int
    hold: int = 0
    unhold: int = 0
    spend: int = 0
    unspend: int = 0


@dataclass(slots=True)
class _Reservation:
    """What is remembered of a reservation: for good while it is held, then for the horizon."""

    state: State
    holds: tuple[Hold, ...] = ()
    """Empty if it ended without ever having been held here: released unseen, or recovered."""
    lease_until_ms: int = 0
    observed: tuple[int, ...] = ()
    charged: tuple[int, ...] = ()
    charged_at_ms: int | None = None
    """when its lease ran out: which bucket of a rolling window a late settlement corrects"""
    forget_at_ms: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(hold.key for hold in self.holds)


@dataclass(slots=True)
class Ledger:
    """One org's ledger over plain dictionaries: not thread-safe; commands say when it is."""

    counters: dict[str, _Counter] = field(default_factory=dict)
    reservations: dict[str, _Reservation] = field(default_factory=dict)
    book: OverrideBook = field(default_factory=OverrideBook)

    def reserve(self, command: Reserve) -> Reserved | Refused | Paused | AlreadyEnded:
        """Hold every amount, or nothing."""
        self.forget(command.at_ms)
        keys = tuple(hold.key for hold in command.holds)
        known = self.reservations.get(command.id)
        before = self.balances(keys, command.at_ms)
        if known is not None and known.state is not State.HELD:
            return AlreadyEnded(command.id, known.state)
        overrides = self.book.at(command.at_ms)
        limits = tuple(
            overrides.limit_in_force(hold.budget_id, hold.limit, command.at_ms)
            for hold in command.holds
        )
        if known is not None:
            _must_match(known, keys)
            return Reserved(command.id, before, limits)
        pauses = [overrides.pauses[who] for who in command.pausable_as if who in overrides.pauses]
        if pauses:
            return Paused(command.id, lasts_longest(pauses))
        in_force = [replace(h, limit=limit) for h, limit in zip(command.holds, limits, strict=True)]
        if not fits_all(in_force, before):
            return Refused(command.id, before, limits)
        moves = [_Move(h.key, h.forget_at_ms, hold=h.amount) for h in command.holds]
        self._move(moves, command.at_ms)
        nothing = tuple(0 for _ in command.holds)
        self.reservations[command.id] = _Reservation(
            State.HELD, command.holds, command.lease_until_ms, observed=nothing, charged=nothing
        )
        return Reserved(command.id, self.balances(keys, command.at_ms), limits)

    def settle(self, command: Settle) -> Ending:
        """Charge what the call did cost, exactly once."""
        self.forget(command.at_ms)
        known = self.reservations.get(command.id)
        costs = tuple(charge.cost for charge in command.charges)
        if known is None and not self._is_recoverable(command):
            return Ending(command.id, Outcome.DEAD_LETTER)
        if known is not None and known.state is State.SETTLED:
            return _repeated(command.id, known, costs)
        forget_at_ms = command.at_ms + command.settle_horizon_ms
        if known is None or not known.holds:
            moves = [_Move(c.key, c.forget_at_ms, spend=c.cost) for c in command.charges]
            self._move(moves, command.at_ms)
            self.reservations[command.id] = _Reservation(
                State.SETTLED, charged=costs, forget_at_ms=forget_at_ms
            )
            outcome = Outcome.RECOVERED if known is None else Outcome.ANOMALY
            return Ending(command.id, outcome, costs)
        _must_match(known, tuple(charge.key for charge in command.charges))
        outcome = {
            State.HELD: Outcome.SETTLED,
            State.EXPIRED: Outcome.LATE,
            State.RELEASED: Outcome.ANOMALY,
        }[known.state]
        self._end(known, State.SETTLED, costs, command.at_ms, forget_at_ms)
        return Ending(command.id, outcome, costs)

    def release(self, command: Release) -> Ending:
        """Give everything back. An unknown id is marked, so that its reserve cannot come late."""
        self.forget(command.at_ms)
        known = self.reservations.get(command.id)
        forget_at_ms = command.at_ms + command.settle_horizon_ms
        if known is None:
            self.reservations[command.id] = _Reservation(State.RELEASED, forget_at_ms=forget_at_ms)
            return Ending(command.id, Outcome.RELEASED)
        free = tuple(0 for _ in known.holds)
        if known.state in (State.SETTLED, State.RELEASED):
            return _repeated(command.id, known, free)
        _must_match(known, command.keys)
        if known.state is State.EXPIRED:
            self._end(known, State.SETTLED, free, command.at_ms, forget_at_ms)
            return Ending(command.id, Outcome.LATE, free)
        self._end(known, State.RELEASED, free, command.at_ms, forget_at_ms)
        return Ending(command.id, Outcome.RELEASED, free)

    def renew(self, command: Renew) -> bool:
        """Move the lease on, never back. False if there is no open reservation of this id."""
        self.forget(command.at_ms)
        known = self.reservations.get(command.id)
        if known is None or known.state is not State.HELD:
            return False
        if command.observed and len(command.observed) != len(known.holds):
            raise HoldsMismatchError(f"{command.id}: renew observed another number of counters")
        known.lease_until_ms = max(known.lease_until_ms, command.lease_until_ms)
        if command.observed:
            known.observed = tuple(map(max, known.observed, command.observed))
        return True

    def due(self, at_ms: int, count: int) -> list[str]:
        """Ids whose lease has run out, oldest lease first."""
        leases = sorted(
            (known.lease_until_ms, id_)
            for id_, known in self.reservations.items()
            if known.state is State.HELD and known.lease_until_ms <= at_ms
        )
        return [id_ for _, id_ in leases[:count]]

    def expire(self, id_: str, at_ms: int, settle_horizon_ms: int) -> Ending | None:
        """Charge a reservation whose lease has run out; None if it was renewed or has ended."""
        self.forget(at_ms)
        known = self.reservations.get(id_)
        if known is None or known.state is not State.HELD or known.lease_until_ms > at_ms:
            return None
        charged = tuple(
            0 if hold.transient else max(hold.amount, seen)
            for hold, seen in zip(known.holds, known.observed, strict=True)
        )
        self._end(known, State.EXPIRED, charged, at_ms, at_ms + settle_horizon_ms)
        known.charged_at_ms = at_ms
        return Ending(id_, Outcome.EXPIRED, charged)

    def override(self, command: Override) -> Applied:
        """Change what an operator wants changed, once."""
        self.forget(command.at_ms)
        return self.book.apply(command)

    def balances(self, keys: Iterable[str], at_ms: int) -> tuple[Balance, ...]:
        """How the counters stand at an instant; one that was never used is empty."""
        found = ((key, self.counters.get(key)) for key in keys)
        return tuple(c.balance(width_of(key), at_ms) if c else Balance() for key, c in found)

    def open_reservations(self) -> int:
        """How many reservations are held."""
        return sum(known.state is State.HELD for known in self.reservations.values())

    def forget(self, at_ms: int) -> None:
        """Drop what has outlived its window or horizon; never an open reservation."""
        for key in [k for k, c in self.counters.items() if c.forget_at_ms <= at_ms]:
            del self.counters[key]
        self.book.forget(at_ms)
        gone = [
            id_
            for id_, known in self.reservations.items()
            if known.forget_at_ms is not None and known.forget_at_ms <= at_ms
        ]
        for id_ in gone:
            del self.reservations[id_]

    def _is_recoverable(self, command: Settle) -> bool:
        """Whether a reservation that the store has lost can be settled from its metadata."""
        young = command.at_ms - command.reserved_at_ms <= command.settle_horizon_ms
        return young and all(charge.key in self.counters for charge in command.charges)

    def _end(
        self,
        known: _Reservation,
        to: State,
        costs: tuple[int, ...],
        at_ms: int,
        forget_at_ms: int,
    ) -> None:
        """Move what is held, or was charged before, to `costs`."""
        was_held = known.state is State.HELD
        self._move(
            [
                _Move(
                    hold.key,
                    hold.forget_at_ms,
                    unhold=hold.amount if was_held else 0,
                    spend=cost,
                    unspend=charged,
                )
                for hold, charged, cost in zip(known.holds, known.charged, costs, strict=True)
            ],
            at_ms,
            at_ms if known.charged_at_ms is None else known.charged_at_ms,
        )
        known.state, known.charged, known.forget_at_ms = to, costs, forget_at_ms

    def _move(self, moves: Sequence[_Move], at_ms: int, charged_at_ms: int | None = None) -> None:
        """The only place where counters change: check all, then write all."""
        standing = self.balances((move.key for move in moves), at_ms)
        for balance, move in zip(standing, moves, strict=True):
            if max(balance.spent, balance.held) >= COUNTER_MAX:
                raise CounterRangeError(f"{move.key}: stands at 2**62 or beyond")
        for move in moves:
            width_ms = width_of(move.key)
            counter = self.counters.setdefault(move.key, _Counter(move.forget_at_ms))
            counter.forget_at_ms = max(counter.forget_at_ms, move.forget_at_ms)
            counter.held = max(0, counter.held + move.hold - move.unhold)
            change = move.spend - move.unspend
            if width_ms is None:
                counter.spent = max(0, counter.spent + change)
            else:
                end_ms = window_end_ms(at_ms, width_ms)
                counter.forget_at_ms = max(counter.forget_at_ms, end_ms)
                charged_at = at_ms if charged_at_ms is None else charged_at_ms
                counter.correct(width_ms, at_ms, charged_at, change)


def _repeated(id_: str, known: _Reservation, costs: tuple[int, ...]) -> Ending:
    """Rule 2: the same ending again changes nothing, another one is reported only."""
    same = known.charged == costs or not (any(known.charged) or any(costs))
    return Ending(id_, Outcome.DUPLICATE if same else Outcome.CONFLICT, known.charged)


def _must_match(known: _Reservation, keys: tuple[str, ...]) -> None:
    if known.keys != keys:
        raise HoldsMismatchError("the command names other counters than the reservation holds")
