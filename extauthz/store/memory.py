"""The ledger in this process's memory: for tests and for trying things out; it forgets on exit."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
    Applied,
    Balance,
    ClockSkewError,
    CounterRangeError,
    Ending,
    HoldsMismatchError,
    Key,
    Ledger,
    Override,
    Overrides,
    Release,
    Renew,
    Reserve,
    ReserveAnswer,
    Row,
    Seal,
    Sealed,
    Settle,
    Standing,
    State,
)
from extauthz.store.base import BooksClosedError, StoredReservation, check_keys


def system_clock_ms() -> int:
    """The time of this machine."""
    return time.time_ns() // 1_000_000


class MemoryStore:
    """One `Ledger` per org. No method awaits anything, so each runs alone on its event loop."""

    def __init__(self, clock_ms: Callable[[], int] = system_clock_ms) -> None:
        self._clock_ms = clock_ms
        self._ledgers: defaultdict[str, Ledger] = defaultdict(Ledger)
        self._expected: set[str] = set()

    async def reserve(self, command: Reserve) -> ReserveAnswer:
        """See `LedgerStore`."""
        check_keys(command.org, [hold.key for hold in command.holds])
        return self._ledger(command.org, command.at_ms).reserve(command)

    async def settle(self, command: Settle) -> Ending:
        """See `LedgerStore`."""
        check_keys(command.org, [charge.key for charge in command.charges])
        return self._ledger(command.org, command.at_ms).settle(command)

    async def settle_many(self, commands: Sequence[Settle]) -> list[Ending | Exception]:
        """See `LedgerStore`."""
        answers: list[Ending | Exception] = []
        for command in commands:
            try:
                answers.append(await self.settle(command))
            except (
                ClockSkewError,
                HoldsMismatchError,
                CounterRangeError,
                BooksClosedError,
                ValueError,
            ) as error:
                answers.append(error)
        return answers

    async def release(self, command: Release) -> Ending:
        """See `LedgerStore`."""
        check_keys(command.org, command.keys)
        return self._ledger(command.org, command.at_ms).release(command)

    async def renew(self, command: Renew) -> bool:
        """See `LedgerStore`."""
        return self._ledger(command.org, command.at_ms).renew(command)

    async def expire(
        self, org: str, at_ms: int, settle_horizon_ms: int, count: int
    ) -> list[Ending]:
        """See `LedgerStore`."""
        ledger = self._ledger(org, at_ms)
        endings = [ledger.expire(id_, at_ms, settle_horizon_ms) for id_ in ledger.due(at_ms, count)]
        return [ending for ending in endings if ending is not None]

    async def override(self, command: Override) -> Applied:
        """See `LedgerStore`."""
        return self._ledger(command.org, command.at_ms).override(command)

    async def overrides(self, org: str, at_ms: int) -> Overrides:
        """See `LedgerStore`."""
        return self._ledgers[org].book.at(at_ms)

    async def key(self, org: str, key_hash: str) -> Key | None:
        """See `LedgerStore`."""
        return self._ledgers[org].book.keys.get(key_hash)

    async def balances(self, org: str, keys: Sequence[str], at_ms: int) -> tuple[Balance, ...]:
        """See `LedgerStore`."""
        check_keys(org, keys)
        ledger = self._ledgers[org]
        ledger.forget(self._clock_ms())
        return ledger.balances(keys, at_ms)

    async def open_reservations(self, org: str) -> int:
        """See `LedgerStore`."""
        return self._ledgers[org].open_reservations()

    async def open_ids(self, org: str) -> list[str]:
        """See `LedgerStore`."""
        known = self._ledgers[org].reservations
        return [id_ for id_, one in known.items() if one.state is State.HELD]

    async def reservations(self, org: str, ids: Sequence[str]) -> dict[str, StoredReservation]:
        """See `LedgerStore`."""
        known = self._ledgers[org].reservations
        return {
            id_: StoredReservation(
                one.state,
                ()
                if one.state is State.SETTLED
                else tuple((hold.key, hold.forget_at_ms) for hold in one.holds),
                () if one.state is State.HELD else one.charged,
                one.cost_nanousd,
                "" if one.state is State.SETTLED else one.particulars,
                tuple(h.amount for h in one.holds) if one.state is State.HELD else (),
            )
            for id_ in ids
            if (one := known.get(id_)) is not None
        }

    async def unconfirmed_ids(self, org: str) -> list[str]:
        """See `LedgerStore`."""
        known = self._ledgers[org].reservations
        return [id_ for id_, one in known.items() if one.state is State.EXPIRED]

    async def rows(self, org: str, after_seq: int, count: int) -> list[Row]:
        """See `LedgerStore`."""
        return self._ledgers[org].books.after(after_seq, count)

    def distrust_books(self, org: str, why: str | None) -> None:
        """See `LedgerStore`: what is in memory cannot be behind."""

    def expect_books(self, org: str) -> None:
        """See `LedgerStore`."""
        self._expected.add(org)

    async def claim_archive(self, org: str, holder: str, at_ms: int, until_ms: int) -> Standing:
        """See `LedgerStore`."""
        return self._opened(org, at_ms).books.claim(holder, at_ms, until_ms)

    async def seal(self, command: Seal) -> Sealed:
        """See `LedgerStore`."""
        return self._opened(command.org, command.at_ms).books.seal(command)

    async def note_behind(self, org: str, at_ms: int, archived_seq: int, why: str | None) -> None:
        """See `LedgerStore`."""
        self._timely(org, at_ms).books.note_behind(archived_seq, why)

    async def standing(self, org: str) -> Standing:
        """See `LedgerStore`."""
        return self._ledgers[org].books.standing

    async def check_ready(self) -> None:
        """Always: what it does not promise is in its name."""

    async def close(self) -> None:
        """Nothing to close; the ledgers stay readable for tests."""

    def _ledger(self, org: str, at_ms: int) -> Ledger:
        """An org's ledger, with its books opened unless they are expected to be."""
        if org in self._expected:
            return self._opened(org, at_ms)
        ledger = self._timely(org, at_ms)
        if ledger.books.standing.behind and not ledger.books.last_seq:
            raise BooksClosedError(org)
        ledger.books.open(at_ms)
        return ledger

    def _opened(self, org: str, at_ms: int) -> Ledger:
        ledger = self._timely(org, at_ms)
        if not ledger.books.last_seq:
            raise BooksClosedError(org)
        return ledger

    def _timely(self, org: str, at_ms: int) -> Ledger:
        off_ms = abs(self._clock_ms() - at_ms)
        if off_ms > CLOCK_SKEW_MS_MAX:
            raise ClockSkewError(f"the caller's clock and the store's are {off_ms} ms apart")
        return self._ledgers[org]
