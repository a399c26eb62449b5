"""What the ledger remembers of a reservation."""

from dataclasses import dataclass

from extauthz.ledger.commands import Hold, HoldsMismatchError, State


@dataclass(slots=True)
class Reservation:
    """What is remembered of a reservation: for good while it is held, then for the horizon."""

    state: State
    holds: tuple[Hold, ...] = ()
    """Empty if it ended without ever having been held here: released unseen, or recovered."""
    lease_until_ms: int = 0
    observed: tuple[int, ...] = ()
    charged: tuple[int, ...] = ()
    cost_nanousd: int = 0
    """the most it can cost while it is held, then what it was charged"""
    observed_nanousd: int = 0
    particulars: str = ""
    charged_at_ms: int | None = None
    """when its lease ran out: which bucket of a rolling window a late settlement corrects"""
    forget_at_ms: int | None = None
    remember_until_ms: int = 0
    output_cap: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The counters, in their order."""
        return tuple(hold.key for hold in self.holds)

    def must_be_on(self, keys: tuple[str, ...]) -> None:
        """A command about a reservation names the counters that it holds on.

        Raises:
            HoldsMismatchError: it names others.
        """
        if self.keys != keys:
            raise HoldsMismatchError("the command names other counters than the reservation holds")
