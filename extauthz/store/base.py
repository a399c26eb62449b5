"""What every ledger store does: run the table of `extauthz.ledger`, each command in one atomic step.

Rules for implementations:
* A command that was sent is never cancelled; the caller's cancellation only stops the waiting.
* A reply is believed only if it carries the id that was asked for; anything else closes the
  connection and raises `StoreUnavailableError`.
* All keys of an org share one hash tag, and every key a script touches is declared.
"""

from collections.abc import Sequence
from typing import Protocol

from extauthz.ledger import (
    AlreadyEnded,
    Balance,
    Ending,
    Refused,
    Release,
    Renew,
    Reserve,
    Reserved,
    Settle,
)


class StoreError(Exception):
    """The store cannot be used; its text names the place and the remedy."""


class StoreUnavailableError(StoreError):
    """No (trustworthy) answer in time. The command may or may not have been executed."""


class LedgerStore(Protocol):
    """A ledger that outlives the process (or, in memory, does not).

    Every method may raise `StoreUnavailableError`; those that write also `ClockSkewError`, and
    those that end a reservation `HoldsMismatchError`. After `ClockSkewError` and
    `HoldsMismatchError` nothing has changed.
    """

    async def reserve(self, command: Reserve) -> Reserved | Refused | AlreadyEnded:
        """Hold amounts on all counters at once, or on none."""

    async def settle(self, command: Settle) -> Ending:
        """End a reservation with its cost, exactly once."""

    async def release(self, command: Release) -> Ending:
        """End a reservation for free."""

    async def renew(self, command: Renew) -> bool:
        """Move a lease on; False if no reservation of this id is open."""

    async def expire(
        self, org: str, at_ms: int, settle_horizon_ms: int, count: int
    ) -> list[Ending]:
        """Charge up to `count` reservations whose lease has run out, oldest first."""

    async def balances(self, org: str, keys: Sequence[str]) -> tuple[Balance, ...]:
        """How the counters stand now."""

    async def open_reservations(self, org: str) -> int:
        """How many reservations of an org are held."""

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
    return f"xa1:{{{org}}}:c:{budget_id}:{window}"
