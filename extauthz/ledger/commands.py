"""What the ledger is told and what it answers: plain values, no behaviour but rule 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from extauthz.ledger.caps import ROOM_MAX, CapRange, Slope
from extauthz.ledger.keys import KeyGone
from extauthz.money import AMOUNT_MAX

CLOCK_SKEW_MS_MAX = 1_000
"""A caller whose clock is further off than this from the store's is refused."""

COUNTER_MAX = 2**62
"""No command touches a counter that has come this far: stores count in 64 bits, and an increment
that fails half-way through a command would leave the other half applied."""


class State(StrEnum):
    """Where a reservation stands. All but HELD and EXPIRED are endings for good."""

    HELD = "held"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


class Outcome(StrEnum):
    """How an ending command was answered; the label of `extauthz_settlements_total`."""

    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"
    LATE = "late"
    ANOMALY = "anomaly"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    RECOVERED = "recovered"
    DEAD_LETTER = "dead_letter"


class Hold(NamedTuple):
    """One counter's part in a reservation.

    Attributes:
        key: the counter: one budget in one window.
        amount: the most that the call can add to it, in the budget's unit.
        limit: the limit in force.
        enforcing: False for a shadow budget, which counts and never refuses.
        transient: True where only the hold counts and nothing is ever spent (calls in flight).
        forget_at_ms: when the counter may be forgotten: window end + longest lease + horizon.
        budget_id: whose overrides may replace the limit; None where nothing can.
        slope: how the amount shrinks with the call's output cap; None: it does not.
        least: set where the call may be capped to fit this counter: what it holds under the least
            cap. None: the counter must have room for all of the amount, and caps nothing.
    """

    key: str
    amount: int
    limit: int
    forget_at_ms: int
    enforcing: bool = True
    transient: bool = False
    budget_id: str | None = None
    slope: Slope | None = None
    least: int | None = None

    @property
    def needed(self) -> int:
        """The room without which the call is refused."""
        return self.amount if self.least is None else self.least

    def amount_under(self, cap: int | None) -> int:
        """What is held once the cap is known."""
        return self.amount if cap is None or self.slope is None else self.slope.at(cap)

    def under(self, cap: int | None) -> "Hold":
        """This hold once the cap is known."""
        if cap is None or self.slope is None:
            return self
        return self._replace(amount=self.amount_under(cap))


class Balance(NamedTuple):
    """A counter as it stands: amounts in the budget's unit."""

    spent: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class Reserve:
    """Hold amounts on all counters at once, or on none.

    Attributes:
        pausable_as: whose pause refuses it, `agent:NAME` and `team:NAME`.
        key_hash: the key from the ledger by which the call came in; "" where it came otherwise. It
            is checked to be that of `pausable_as[0]` still.
        estimate_nanousd: the most it can cost, whatever its counters count.
        particulars: who asks for what, for the books: a JSON object with members, or "". The ledger
            never reads it; the cap and the cost under it are written at its end.
        remember_until_ms: its ending is remembered at least until then, whatever the horizon of
            the command that ends it: forgotten sooner, it could be recovered and so charged again.
        cap_range: set where the call may be capped. Then a hold's `amount` is that of the worst
            case, and every hold with a slope is held as far as the cap that is chosen asks for.
    """

    id: str
    org: str
    at_ms: int
    lease_until_ms: int
    holds: tuple[Hold, ...]
    pausable_as: tuple[str, ...] = ()
    key_hash: str = ""
    estimate_nanousd: int = 0
    particulars: str = ""
    remember_until_ms: int = 0
    cap_range: CapRange | None = None

    def __post_init__(self) -> None:
        if not self.holds:
            raise ValueError(f"{self.id}: a reservation that holds nothing limits nothing")
        for hold in self.holds:
            if not (0 <= hold.amount <= AMOUNT_MAX and 0 <= hold.limit <= AMOUNT_MAX):
                raise ValueError(f"{hold.key}: an amount or limit is not within 0 and {AMOUNT_MAX}")
            _must_agree(hold, self.cap_range)
        if self.key_hash and not self.pausable_as:
            raise ValueError(f"{self.id}: a key that is nobody's admits nobody")
        _in_range(self.id, self.estimate_nanousd)
        _no_key_twice(self.id, [hold.key for hold in self.holds])
        for hold in self.holds:
            # A counter that is forgotten at once would grant its limit again and again.
            if hold.forget_at_ms <= self.at_ms + CLOCK_SKEW_MS_MAX:
                raise ValueError(f"{hold.key}: would be forgotten before it can be used")


@dataclass(frozen=True, slots=True)
class Charge:
    """What a settlement adds to one counter (0 to a transient one).

    It comes from the call's own metadata, so that it stands even if the store forgot the call.
    """

    key: str
    cost: int
    forget_at_ms: int

    def __post_init__(self) -> None:
        if not 0 <= self.cost <= AMOUNT_MAX:
            raise ValueError(f"{self.key}: a cost is not within 0 and {AMOUNT_MAX}")


@dataclass(frozen=True, slots=True)
class Settle:
    """End a reservation with its cost. `reserved_at_ms` decides whether a lost one is recovered.

    Without `particulars`, the books have those of the reservation.
    """

    id: str
    org: str
    at_ms: int
    reserved_at_ms: int
    settle_horizon_ms: int
    charges: tuple[Charge, ...]
    cost_nanousd: int = 0
    particulars: str = ""

    def __post_init__(self) -> None:
        _in_range(self.id, self.cost_nanousd)
        _no_key_twice(self.id, [charge.key for charge in self.charges])


@dataclass(frozen=True, slots=True)
class Release:
    """End a reservation for free: nothing was billed, or (`abandoned`) the call never left.

    Without `particulars`, the books have those of the reservation.
    """

    id: str
    org: str
    at_ms: int
    settle_horizon_ms: int
    keys: tuple[str, ...]
    """The reservation's counters, in its order."""
    abandoned: bool = False
    particulars: str = ""


@dataclass(frozen=True, slots=True)
class Renew:
    """Move a lease on, and remember the highest cost observed so far (per hold, in its unit)."""

    id: str
    org: str
    at_ms: int
    lease_until_ms: int
    observed: tuple[int, ...] = ()
    observed_nanousd: int = 0

    def __post_init__(self) -> None:
        _in_range(self.id, self.observed_nanousd)
        if not all(0 <= amount <= AMOUNT_MAX for amount in self.observed):
            raise ValueError(f"{self.id}: an observed cost is not within 0 and {AMOUNT_MAX}")


@dataclass(frozen=True, slots=True)
class Reserved:
    """Granted. Balances after the reservation, and limits in force, one per hold.

    `output_cap` is set where the call may be capped: what it may answer, its worst case or less.
    """

    id: str
    balances: tuple[Balance, ...]
    limits: tuple[int, ...]
    output_cap: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Not granted; nothing has changed. Balances as they stand and limits, one per hold."""

    id: str
    balances: tuple[Balance, ...]
    limits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Paused:
    """Not granted: the agent or its team is paused, up to an instant or until it is resumed."""

    id: str
    until_ms: int | None


@dataclass(frozen=True, slots=True)
class AlreadyEnded:
    """The id was used and has ended: a repeated or outrun Check. Never an admission."""

    id: str
    state: State


ReserveAnswer = Reserved | Refused | Paused | KeyGone | AlreadyEnded


@dataclass(frozen=True, slots=True)
class Ending:
    """How a reservation ended.

    Attributes:
        outcome: see the table.
        charged: what each counter carries for this reservation now, in the order of its holds.
    """

    id: str
    outcome: Outcome
    charged: tuple[int, ...] = ()


class ClockSkewError(Exception):
    """The caller's clock and the store's are more than `CLOCK_SKEW_MS_MAX` apart."""


class HoldsMismatchError(Exception):
    """A command names other counters than the reservation holds: nothing was changed."""


class CounterRangeError(Exception):
    """A counter stands at `COUNTER_MAX` or beyond: nothing was changed."""


def _in_range(id_: str, nanousd: int) -> None:
    if not 0 <= nanousd <= AMOUNT_MAX:
        raise ValueError(f"{id_}: a cost is not within 0 and {AMOUNT_MAX}")


def _no_key_twice(id_: str, keys: Sequence[str]) -> None:
    """Each entry is checked against the counter alone: two of them could pass it together."""
    if len(set(keys)) != len(keys):
        raise ValueError(f"{id_}: a counter is named twice")


def _must_agree(hold: Hold, cap_range: CapRange | None) -> None:
    """A hold that the cap changes is what its slope says, at both ends."""
    if hold.slope is None and hold.least is None:
        return
    if cap_range is None or hold.slope is None:
        raise ValueError(f"{hold.key}: is to be capped, and nothing says how")
    if not hold.slope.is_exact_up_to(cap_range.most):
        raise ValueError(f"{hold.key}: its slope is beyond what a store can count")
    least = hold.slope.at(cap_range.least)
    if hold.amount != hold.slope.at(cap_range.most) or hold.least not in (None, least):
        raise ValueError(f"{hold.key}: its amounts are not those of its slope")


def fits(hold: Hold, balance: Balance) -> bool:
    """Rule 1 for one counter; shadow and transient holds obey the same arithmetic."""
    return balance.spent + balance.held + hold.needed <= hold.limit


def fits_all(holds: Sequence[Hold], balances: Sequence[Balance]) -> bool:
    """Rule 1: every enforcing counter has the room."""
    return all(
        fits(hold, balance) or not hold.enforcing
        for hold, balance in zip(holds, balances, strict=True)
    )


def chosen_cap(
    cap_range: CapRange | None, holds: Sequence[Hold], balances: Sequence[Balance]
) -> int | None:
    """The cap of a call that fits: as the tightest of the counters that may cap it allows."""
    if cap_range is None:
        return None
    rooms = [
        hold.slope.room_in(hold.limit - balance.spent - balance.held)
        for hold, balance in zip(holds, balances, strict=True)
        if hold.enforcing and hold.slope is not None and hold.least is not None
    ]
    return cap_range.chosen(min(rooms, default=ROOM_MAX))
