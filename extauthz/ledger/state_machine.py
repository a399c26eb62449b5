"""The table of `extauthz.ledger` over plain dictionaries: the specification of every store."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from extauthz.ledger.commands import (
    AlreadyEnded,
    Balance,
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


@dataclass(slots=True)
class _Reservation:
    """What is remembered of a reservation: for good while it is held, then for the horizon."""

    state: State
    holds: tuple[Hold, ...]
    lease_until_ms: int
    observed: tuple[int, ...]
    charged: tuple[int, ...]
    forget_at_ms: int | None = None


@dataclass(slots=True)
class Ledger:
    """One org's ledger over plain dictionaries: not thread-safe; commands say when it is."""

    counters: dict[str, _Counter] = field(default_factory=dict)
    reservations: dict[str, _Reservation] = field(default_factory=dict)

    def reserve(self, command: Reserve) -> Reserved | Refused | AlreadyEnded:
        """Hold every amount, or nothing."""
        self._forget(command.at_ms)
        known = self.reservations.get(command.id)
        if known is not None and known.state is not State.HELD:
            return AlreadyEnded(command.id, known.state)
        if known is not None:
            return Reserved(command.id, self.balances(hold.key for hold in known.holds))
        before = self.balances(hold.key for hold in command.holds)
        if not fits_all(command.holds, before):
            return Refused(command.id, before)
        for hold in command.holds:
            self._counter(hold.key, hold.forget_at_ms).held += hold.amount
        nothing = tuple(0 for _ in command.holds)
        self.reservations[command.id] = _Reservation(
            State.HELD, command.holds, command.lease_until_ms, observed=nothing, charged=nothing
        )
        return Reserved(command.id, self.balances(hold.key for hold in command.holds))

    def settle(self, command: Settle) -> Ending:
        """Charge what the call did cost, exactly once."""
        self._forget(command.at_ms)
        known = self.reservations.get(command.id)
        costs = tuple(charge.cost for charge in command.charges)
        forget_at_ms = command.at_ms + command.settle_horizon_ms
        if known is None:
            outcome = self._recover(command)
            if outcome is Outcome.RECOVERED:
                self._mark_settled(command, costs, forget_at_ms)
            return Ending(command.id, outcome, costs if outcome is Outcome.RECOVERED else ())
        if known.state is State.SETTLED:
            return _repeated(command.id, known, costs)
        if not known.holds:  # released before it was ever reserved: there is nothing to compare
            for charge in command.charges:
                self._counter(charge.key, charge.forget_at_ms).spent += charge.cost
            self._mark_settled(command, costs, forget_at_ms)
            return Ending(command.id, Outcome.ANOMALY, costs)
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
        self._forget(command.at_ms)
        known = self.reservations.get(command.id)
        forget_at_ms = command.at_ms + command.settle_horizon_ms
        if known is None:
            self.reservations[command.id] = _Reservation(
                State.RELEASED, (), 0, observed=(), charged=(), forget_at_ms=forget_at_ms
            )
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
        self._forget(command.at_ms)
        known = self.reservations.get(command.id)
        if known is None or known.state is not State.HELD:
            return False
        known.lease_until_ms = max(known.lease_until_ms, command.lease_until_ms)
        if command.observed:
            pairs = zip(known.observed, command.observed, strict=True)
            known.observed = tuple(max(before, now) for before, now in pairs)
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

    def _end(
        self, known: _Reservation, to: State, costs: tuple[int, ...], forget_at_ms: int
    ) -> None:
        """Move what is held, or was charged before, to `costs`."""
        for hold, charged, cost in zip(known.holds, known.charged, costs, strict=True):
            counter = self._counter(hold.key, hold.forget_at_ms)
            if known.state is State.HELD:
                # Never below zero, even if the counter was lost meanwhile: a negative hold would
                # be room that nobody granted.
                counter.held = max(0, counter.held - hold.amount)
            counter.spent += cost - charged
        known.state, known.charged, known.forget_at_ms = to, costs, forget_at_ms

    def _recover(self, command: Settle) -> Outcome:
        """Settle a reservation that the store has lost, from what its metadata carries."""
        young = command.at_ms - command.reserved_at_ms <= command.settle_horizon_ms
        remembered = all(charge.key in self.counters for charge in command.charges)
        if not young or not remembered:
            return Outcome.DEAD_LETTER
        for charge in command.charges:
            self.counters[charge.key].spent += charge.cost
        return Outcome.RECOVERED

    def _mark_settled(self, command: Settle, costs: tuple[int, ...], forget_at_ms: int) -> None:
        self.reservations[command.id] = _Reservation(
            State.SETTLED, (), 0, observed=(), charged=costs, forget_at_ms=forget_at_ms
        )

    def _counter(self, key: str, forget_at_ms: int) -> _Counter:
        counter = self.counters.setdefault(key, _Counter(forget_at_ms))
        counter.forget_at_ms = max(counter.forget_at_ms, forget_at_ms)
        return counter

    def _forget(self, at_ms: int) -> None:
        for key in [k for k, c in self.counters.items() if c.forget_at_ms <= at_ms]:
            del self.counters[key]
        gone = [
            id_
            for id_, known in self.reservations.items()
            if known.forget_at_ms is not None and known.forget_at_ms <= at_ms
        ]
        for id_ in gone:
            del self.reservations[id_]


def _repeated(id_: str, known: _Reservation, costs: tuple[int, ...]) -> Ending:
    """Rule 2: the same ending again changes nothing, another one is reported only."""
    same = known.charged == costs or not (any(known.charged) or any(costs))
    return Ending(id_, Outcome.DUPLICATE if same else Outcome.CONFLICT, known.charged)


def _must_match(known: _Reservation, keys: tuple[str, ...]) -> None:
    if tuple(hold.key for hold in known.holds) != keys:
        raise HoldsMismatchError("the command names other counters than the reservation holds")
