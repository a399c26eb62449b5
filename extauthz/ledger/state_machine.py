"""The table of `extauthz.ledger` over plain dictionaries: the specification of every store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from extauthz.ledger.books import Books
from extauthz.ledger.caps import with_cap
from extauthz.ledger.commands import (
    COUNTER_MAX,
    AlreadyEnded,
    Balance,
    CounterRangeError,
    Ending,
    HoldsMismatchError,
    Outcome,
    Paused,
    Refused,
    Release,
    Renew,
    Reserve,
    ReserveAnswer,
    Reserved,
    Settle,
    State,
    chosen_cap,
    fits_all,
)
from extauthz.ledger.counter import Counter
from extauthz.ledger.keys import KeyGone
from extauthz.ledger.overrides import Applied, Override, OverrideBook, lasts_longest
from extauthz.ledger.reservation import Reservation
from extauthz.ledger.rolling import width_of
from extauthz.ledger.rows import Posting, RowOutcome, counter_name


@dataclass(frozen=True, slots=True)
class _Move:
    """What one command does to one counter."""

    key: str
    forget_at_ms: int
    hold: int = 0
    unhold: int = 0
    spend: int = 0
    unspend: int = 0


@dataclass(frozen=True, slots=True)
class _Expiry:
    """A lease that ran out, as the command that it is."""

    id: str
    at_ms: int
    settle_horizon_ms: int
    particulars: str = ""


@dataclass(slots=True)
class Ledger:
    """One org's ledger over plain dictionaries: not thread-safe; commands say when it is."""

    counters: dict[str, Counter] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    book: OverrideBook = field(default_factory=OverrideBook)
    books: Books = field(default_factory=Books)

    def reserve(self, command: Reserve) -> ReserveAnswer:
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
            known.must_be_on(keys)
            cap = known.output_cap if command.cap_range else None
            return Reserved(command.id, before, limits, cap)
        if command.key_hash and not self._is_admitted(command):
            return KeyGone(command.id)
        pauses = [overrides.pauses[who] for who in command.pausable_as if who in overrides.pauses]
        if pauses:
            return Paused(command.id, lasts_longest(pauses))
        in_force = [h._replace(limit=limit) for h, limit in zip(command.holds, limits, strict=True)]
        if not fits_all(in_force, before):
            return Refused(command.id, before, limits)
        cap = chosen_cap(command.cap_range, in_force, before)
        cost, particulars = command.estimate_nanousd, command.particulars
        if command.cap_range is not None and cap is not None:
            cost = command.cap_range.cost.at(cap)
            particulars = with_cap(particulars, cap, cost)
        holds = tuple(hold.under(cap) for hold in command.holds)
        moves = [_Move(h.key, h.forget_at_ms, hold=h.amount) for h in holds]
        self._move(moves, command.at_ms)
        nothing = tuple(0 for _ in holds)
        self.reservations[command.id] = Reservation(
            State.HELD,
            holds,
            command.lease_until_ms,
            observed=nothing,
            charged=nothing,
            cost_nanousd=cost,
            particulars=particulars,
            remember_until_ms=command.remember_until_ms,
            output_cap=cap,
        )
        return Reserved(command.id, self.balances(keys, command.at_ms), limits, cap)

    def _is_admitted(self, command: Reserve) -> bool:
        """Whether the key by which a call came in is its agent's at this moment."""
        key = self.book.keys.get(command.key_hash)
        return key is not None and key.whose == command.pausable_as[0] and key.holds(command.at_ms)

    def settle(self, command: Settle) -> Ending:
        """Charge what the call did cost, exactly once."""
        self.forget(command.at_ms)
        known = self.reservations.get(command.id)
        costs = tuple(charge.cost for charge in command.charges)
        if known is None and not self._is_recoverable(command):
            self.books.write(
                command.at_ms,
                RowOutcome.DEAD_LETTER,
                command.id,
                claimed_nanousd=command.cost_nanousd,
                particulars=command.particulars,
            )
            return Ending(command.id, Outcome.DEAD_LETTER)
        if known is not None and known.state is State.SETTLED:
            return self._repeated(command, known, costs, command.cost_nanousd)
        if known is None or not known.holds:
            return self._settle_unseen(command, known)
        known.must_be_on(tuple(charge.key for charge in command.charges))
        outcome = {
            State.HELD: Outcome.SETTLED,
            State.EXPIRED: Outcome.LATE,
            State.RELEASED: Outcome.ANOMALY,
        }[known.state]
        self._end(command, known, State.SETTLED, RowOutcome(outcome), costs, command.cost_nanousd)
        return Ending(command.id, outcome, costs)

    def release(self, command: Release) -> Ending:
        """Give everything back. An unknown id is marked, so that its reserve cannot come late."""
        self.forget(command.at_ms)
        known = self.reservations.get(command.id)
        called = RowOutcome.ABANDONED if command.abandoned else RowOutcome.RELEASED
        if known is None:
            self.books.write(command.at_ms, called, command.id, particulars=command.particulars)
            self.reservations[command.id] = Reservation(
                State.RELEASED, forget_at_ms=command.at_ms + command.settle_horizon_ms
            )
            return Ending(command.id, Outcome.RELEASED)
        free = tuple(0 for _ in known.holds)
        if known.state in (State.SETTLED, State.RELEASED):
            return self._repeated(command, known, free, 0)
        known.must_be_on(command.keys)
        if known.state is State.EXPIRED:
            self._end(command, known, State.SETTLED, RowOutcome.LATE, free, 0)
            return Ending(command.id, Outcome.LATE, free)
        self._end(command, known, State.RELEASED, called, free, 0)
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
        known.observed_nanousd = max(known.observed_nanousd, command.observed_nanousd)
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
        cost_nanousd = max(known.cost_nanousd, known.observed_nanousd)
        command = _Expiry(id_, at_ms, settle_horizon_ms)
        self._end(
            command, known, State.EXPIRED, RowOutcome.EXPIRED_UNCONFIRMED, charged, cost_nanousd
        )
        known.charged_at_ms = at_ms
        return Ending(id_, Outcome.EXPIRED, charged)

    def override(self, command: Override) -> Applied:
        """Change what an operator wants changed, once."""
        self.forget(command.at_ms)
        applied = self.book.apply(command)
        if applied is Applied.APPLIED:
            self.books.write(
                command.at_ms, RowOutcome.OVERRIDE, command.id, particulars=command.particulars
            )
        return applied

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
        return young and all(
            charge.key in self.counters or charge.forget_at_ms > command.at_ms
            for charge in command.charges
        )

    def _settle_unseen(self, command: Settle, known: Reservation | None) -> Ending:
        """Charge a call that was never held here: the store has lost it, or it was given back."""
        moves = [_Move(c.key, c.forget_at_ms, spend=c.cost) for c in command.charges]
        self._move(moves, command.at_ms)
        costs = tuple(charge.cost for charge in command.charges)
        forget_at_ms = command.at_ms + command.settle_horizon_ms
        if known is not None and known.forget_at_ms is not None:
            forget_at_ms = max(known.forget_at_ms, forget_at_ms)
        self.reservations[command.id] = Reservation(
            State.SETTLED,
            charged=costs,
            cost_nanousd=command.cost_nanousd,
            forget_at_ms=forget_at_ms,
        )
        outcome = Outcome.RECOVERED if known is None else Outcome.ANOMALY
        self.books.write(
            command.at_ms,
            RowOutcome(outcome),
            command.id,
            cost_nanousd=command.cost_nanousd,
            postings=tuple(
                Posting(counter_name(c.key), 0, c.cost, 0, c.forget_at_ms) for c in command.charges
            ),
            particulars=command.particulars,
        )
        return Ending(command.id, outcome, costs)

    def _end(
        self,
        command: "Settle | Release | _Expiry",
        known: Reservation,
        to: State,
        outcome: RowOutcome,
        costs: tuple[int, ...],
        cost_nanousd: int,
    ) -> None:
        """Move what is held, or was charged before, to `costs`, and write the row that says so."""
        was_held = known.state is State.HELD
        charged_at_ms = command.at_ms if known.charged_at_ms is None else known.charged_at_ms
        held = tuple(hold.amount if was_held else 0 for hold in known.holds)
        self._move(
            [
                _Move(hold.key, hold.forget_at_ms, unhold=amount, spend=cost, unspend=charged)
                for hold, amount, charged, cost in zip(
                    known.holds, held, known.charged, costs, strict=True
                )
            ],
            command.at_ms,
            charged_at_ms,
        )
        self.books.write(
            command.at_ms,
            outcome,
            command.id,
            cost_nanousd=cost_nanousd,
            cost_before_nanousd=known.cost_nanousd if known.state is State.EXPIRED else 0,
            charged_at_ms=charged_at_ms,
            postings=tuple(
                Posting(counter_name(hold.key), amount, cost, before, hold.forget_at_ms)
                for hold, amount, cost, before in zip(
                    known.holds, held, costs, known.charged, strict=True
                )
            ),
            particulars=command.particulars or known.particulars,
        )
        known.state, known.charged, known.cost_nanousd = to, costs, cost_nanousd
        # Whatever horizon this command was told: never shorter than that of the call.
        remembered_ms = known.forget_at_ms or known.remember_until_ms
        known.forget_at_ms = max(command.at_ms + command.settle_horizon_ms, remembered_ms)

    def _repeated(
        self,
        command: Settle | Release,
        known: Reservation,
        costs: tuple[int, ...],
        cost_nanousd: int,
    ) -> Ending:
        """Rule 2: the same ending again changes nothing, another one is only written down."""
        same = known.charged == costs or not (any(known.charged) or any(costs))
        if same and known.cost_nanousd == cost_nanousd:
            return Ending(command.id, Outcome.DUPLICATE, known.charged)
        self.books.write(
            command.at_ms,
            RowOutcome.CONFLICT,
            command.id,
            cost_nanousd=known.cost_nanousd,
            cost_before_nanousd=known.cost_nanousd,
            claimed_nanousd=cost_nanousd,
            particulars=command.particulars,
        )
        return Ending(command.id, Outcome.CONFLICT, known.charged)

    def _move(self, moves: Sequence[_Move], at_ms: int, charged_at_ms: int | None = None) -> None:
        """The only place where counters change: check all, then write all."""
        standing = self.balances((move.key for move in moves), at_ms)
        for balance, move in zip(standing, moves, strict=True):
            if max(balance.spent, balance.held) >= COUNTER_MAX:
                raise CounterRangeError(f"{move.key}: stands at 2**62 or beyond")
        for move in moves:
            width_ms = width_of(move.key)
            counter = self.counters.setdefault(move.key, Counter(move.forget_at_ms))
            counter.forget_at_ms = max(counter.forget_at_ms, move.forget_at_ms)
            counter.held = max(0, counter.held + move.hold - move.unhold)
            charged_at = at_ms if charged_at_ms is None else charged_at_ms
            counter.spend(width_ms, at_ms, charged_at, move.spend - move.unspend)
