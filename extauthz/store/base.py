"""What every ledger store does: run the table of `extauthz.ledger`, one atomic step a command.

Rules for implementations:
* A command that was sent is never cancelled; the caller's cancellation only stops the waiting.
* A reply is believed only if it carries the id that was asked for; anything else closes the
  connection and raises `StoreUnavailableError`.
* All keys of an org share one hash tag, and every key a script touches is declared.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from extauthz.errors import OperatorError
from extauthz.ledger import (
    Applied,
    Balance,
    Ending,
    Key,
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
    bucket_width_ms,
)


class StoreError(OperatorError):
    """The store cannot be used; its text names the place and the remedy."""


class StoreUnavailableError(StoreError):
    """No (trustworthy) answer in time. The command may or may not have been executed."""


class BooksClosedError(StoreError):
    """The store has lost books of an org, and with them what was spent: nothing is written."""

    def __init__(self, org: str, why: str | None = None) -> None:
        super().__init__(
            why
            or f"the store has lost the books of the org '{org}', and with them what was spent: "
            "put its data back, or make it again with `extauthz ledger rebuild`"
        )


@dataclass(frozen=True, slots=True)
class StoredReservation:
    """What a store remembers of a reservation.

    Attributes:
        state: where it stands.
        counters: each key it was reserved on, and when that may be forgotten; nothing where a
            settlement has ended it for good, or where it was never held here.
        charged: what each counter carries for it, once it has ended.
        cost_nanousd: the most it can cost while it is held, then what it was charged.
        particulars: who asked for what; nothing where a settlement has ended it for good.
        held: what it holds on each counter, while it is held.
    """

    state: State
    counters: tuple[tuple[str, int], ...] = ()
    charged: tuple[int, ...] = ()
    cost_nanousd: int = 0
    particulars: str = ""
    held: tuple[int, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Its counters, in the order in which every command names them."""
        return tuple(key for key, _ in self.counters)


class LedgerStore(Protocol):
    """A ledger that outlives the process (or, in memory, does not).

    Every method may raise `StoreUnavailableError`; those that write also `ClockSkewError`,
    `HoldsMismatchError`, `CounterRangeError` and `BooksClosedError`, after which nothing has
    changed. A key that is not one of the org's is a `ValueError` before anything is sent.

    Whoever did not see the answer of a reserve (`StoreUnavailableError`, or cancelled while
    waiting) releases its id: in whatever order the two arrive, nothing stays held.
    """

    async def reserve(self, command: Reserve) -> ReserveAnswer:
        """Hold amounts on all counters at once, or on none."""

    async def settle(self, command: Settle) -> Ending:
        """End a reservation with its cost, exactly once."""

    async def settle_many(self, commands: Sequence[Settle]) -> list[Ending | Exception]:
        """Settle a batch in one round trip: for each its ending, or why it has none.

        One that fails does not keep the others from being settled; they are not one transaction.
        """

    async def release(self, command: Release) -> Ending:
        """End a reservation for free."""

    async def renew(self, command: Renew) -> bool:
        """Move a lease on; False if no reservation of this id is open."""

    async def expire(
        self, org: str, at_ms: int, settle_horizon_ms: int, count: int
    ) -> list[Ending]:
        """Charge up to `count` reservations whose lease has run out, oldest first."""

    async def override(self, command: Override) -> Applied:
        """Change a limit, or pause somebody, once; in force at the next reserve."""

    async def overrides(self, org: str, at_ms: int) -> Overrides:
        """What operators have changed, as far as it holds at an instant."""

    async def key(self, org: str, key_hash: str) -> Key | None:
        """Whose a virtual key is, ended or not; None: nobody's.

        Raises `BooksClosedError` where the store has lost the org's books, and its keys with them.
        """

    async def balances(self, org: str, keys: Sequence[str], at_ms: int) -> tuple[Balance, ...]:
        """How the counters stand; `at_ms` is now, to which rolling windows reach."""

    async def open_reservations(self, org: str) -> int:
        """How many reservations of an org are held."""

    async def open_ids(self, org: str) -> list[str]:
        """The ids of all reservations of an org that are held."""

    async def unconfirmed_ids(self, org: str) -> list[str]:
        """The ids of those whose lease has run out, while a settlement may still come.

        Some may have been forgotten in the meantime.
        """

    async def rows(self, org: str, after_seq: int, count: int) -> list[Row]:
        """Up to `count` rows of the org's books after a number, in order; not those trimmed."""

    def expect_books(self, org: str) -> None:
        """An org has books, so a store without them has lost them: they are not opened anew."""

    def distrust_books(self, org: str, why: str | None) -> None:
        """Take no more commands of an org, because its books are known to lack rows; None: again.

        They are answered with `BooksClosedError` and the reason.
        """

    async def claim_archive(self, org: str, holder: str, at_ms: int, until_ms: int) -> Standing:
        """Be the one that archives an org's rows until an instant, if nobody else is.

        To give it up, claim it until now. The answer tells who is, and how far the rows are sealed.
        Raises `BooksClosedError` where there are no books (yet).
        """

    async def seal(self, command: Seal) -> Sealed:
        """Trim rows that are archived; only for who archives them, and from where they ended."""

    async def note_behind(self, org: str, at_ms: int, archived_seq: int, why: str | None) -> None:
        """Tell all who share the store that it lacks rows that are archived; None: no longer.

        Whoever claims the archive is told, and books that are not there are not opened anew.
        `archived_seq` is the last row of the archive that shows it.
        """

    async def standing(self, org: str) -> Standing:
        """How far the rows of an org are sealed, and by whom."""

    async def reservations(self, org: str, ids: Sequence[str]) -> dict[str, StoredReservation]:
        """How these reservations stand, without those that the store does not know."""

    async def check_ready(self) -> None:
        """Raise `StoreError` unless the store answers and keeps what it is told.

        That is: it is a primary, its memory policy evicts nothing, and it persists every write
        before it answers.
        """

    async def close(self) -> None:
        """Let commands under way finish, then close the connections."""


def counter_key(org: str, budget_id: str, window_start_ms: int | None) -> str:
    """The key of one budget's counter in one window; its UTC start, as local labels repeat."""
    window = "total" if window_start_ms is None else str(window_start_ms // 1000)
    return f"{org_prefix(org)}c:{budget_id}:{window}"


def rolling_counter_key(org: str, budget_id: str, length_ms: int) -> str:
    """The key of one budget's counter in a rolling window, which tells the ledger what it is."""
    return f"{org_prefix(org)}c:{budget_id}:rolling-{bucket_width_ms(length_ms)}"


def counter_key_of(org: str, name: str) -> str:
    """The key of a counter as the rows of its org name it."""
    return f"{org_prefix(org)}c:{name}"


def org_prefix(org: str) -> str:
    """How every key of an org begins: the braces put them all into one slot of a Cluster."""
    if not org or "{" in org or "}" in org:
        raise ValueError(f"{org!r} cannot name an org: it is empty or has a brace in it")
    return f"xa1:{{{org}}}:"


def check_keys(org: str, keys: Iterable[str]) -> None:
    """A command changes counters of its own org only.

    Raises:
        ValueError: naming the key that is not one.
    """
    prefix = f"{org_prefix(org)}c:"
    for key in keys:
        if not key.startswith(prefix):
            raise ValueError(f"{key!r} is no counter of the org {org!r}: make it with counter_key")
