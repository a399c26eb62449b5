"""The table of `extauthz.ledger` over plain dictionaries: the specification of every store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from extauthz.ledger.commands import (
    COUNTER_MAX,
    AlreadyEnded,
    Balance,
    CounterRangeError,
    Ending,
    Hold,
    HoldsMismatchError,
    Outcome,
    Refused,
    Release,
    Renew,
    Reserve,
    Reserved,
    Settle,
    State,
    fits_all,
)


@dataclass(slots=True)
class _Counter:
    forget_at_ms: int
    spent: int = 0
    held: int = 0


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
    forget_at_ms: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(hold.key for hold in self.holds)


@dataclass(slots=True)
class Ledger:
    """One org's ledger over plain dictionaries: not thread-safe; commands say when it is."""

    counters: dict[str, _Counter] = field(default_factory=dict)
    reservations: dict[str, _Reservation] = field(default_factory=dict)

    def reserve(self, command: Reserve) -> Reserved | Refused | AlreadyEnded:
        """Hold every amount, or nothing."""
        self.forget(command.at_ms)
        keys = tuple(hold.key for hold in command.holds)
        known = self.reservations.get(command.id)
        before = self.balances(keys)
        if known is not None and known.state is not State.HELD:
            return AlreadyEnded(command.id, known.state)
        if known is not None:
            _must_match(known, keys)
            return Reserved(command.id, before)
        if not fits_all(command.holds, before):
            return Refused(command.id, before)
        self._move([_Move(h.key, h.forget_at_ms, hold=h.amount) for h in command.holds])
        nothing = tuple(0 for _ in command.holds)
        self.reservations[command.id] = _Reservation(
            State.HELD, command.holds, command.lease_until_ms, observed=nothing, charged=nothing
        )
        return Reserved(command.id, self.balances(keys))

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
            self._move([_Move(c.key, c.forget_at_ms, spend=c.cost) for c in command.charges])
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
        self._end(known, State.SETTLED, costs, forget_at_ms)
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
            self._end(known, State.SETTLED, free, forget_at_ms)
            return Ending(command.id, Outcome.LATE, free)
        self._end(known, State.RELEASED, free, forget_at_ms)
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
        self._end(known, State.EXPIRED, charged, at_ms + settle_horizon_ms)
        return Ending(id_, Outcome.EXPIRED, charged)

    def balances(self, keys: Iterable[str]) -> tuple[Balance, ...]:
        """How the counters stand; one that was never used is empty."""
        found = (self.counters.get(key) for key in keys)
        return tuple(Balance(c.spent, c.held) if c else Balance() for c in found)

    def open_reservations(self) -> int:
        """How many reservations are held."""
        return sum(known.state is State.HELD for known in self.reservations.values())

    def forget(self, at_ms: int) -> None:
        """Drop what has outlived its window or horizon; never an open reservation."""
        for key in [k for k, c in self.counters.items() if c.forget_at_ms <= at_ms]:
            del self.counters[key]
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
        self, known: _Reservation, to: State, costs: tuple[int, ...], forget_at_ms: int
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
            ]
        )
        known.state, known.charged, known.forget_at_ms = to, costs, forget_at_ms

    def _move(self, moves: Sequence[_Move]) -> None:
        """The only place where counters change: check all, then write all."""
        for balance, move in zip(self.balances(m.key for m in moves), moves, strict=True):
            if max(balance.spent, balance.held) >= COUNTER_MAX:
                raise CounterRangeError(f"{move.key}: stands at 2**62 or beyond")
        for move in moves:
            counter = self.counters.setdefault(move.key, _Counter(move.forget_at_ms))
            counter.forget_at_ms = max(counter.forget_at_ms, move.forget_at_ms)
            counter.held = max(0, counter.held + move.hold - move.unhold)
            counter.spent = max(0, counter.spent + move.spend - move.unspend)


def _repeated(id_: str, known: _Reservation, costs: tuple[int, ...]) -> Ending:
    """Rule 2: the same ending again changes nothing, another one is reported only."""
    same = known.charged == costs or not (any(known.charged) or any(costs))
    return Ending(id_, Outcome.DUPLICATE if same else Outcome.CONFLICT, known.charged)


def _must_match(known: _Reservation, keys: tuple[str, ...]) -> None:
    if known.keys != keys:
        raise HoldsMismatchError("the command names other counters than the reservation holds")
