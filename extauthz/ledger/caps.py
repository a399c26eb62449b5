"""What a call holds under an output cap, and which cap it gets: whole numbers only.

An amount grows with the cap in a straight line. Its rate is told for a thousand tokens, because
prices are not whole nano-USD a token ($0.0375 per million is 37.5). Every rounding is up, so what
is held under a cap is never below what the call can cost under it.
"""

from dataclasses import dataclass
from typing import NamedTuple

from extauthz.money import AMOUNT_MAX

RATE_TOKENS = 1_000
"""Output tokens that a rate is for."""

RATE_MAX = 2**42
"""A Lua number is a double: a remainder times `RATE_TOKENS` stays below 2^53."""

ROOM_MAX = 2**40
"""Tokens; more room than that is as good as this much. Times a share, it stays below 2^53."""

SHARE_WHOLE = 1_000


class Slope(NamedTuple):
    """An amount under a cap: `fixed`, and `rate` for every thousand tokens of the cap."""

    fixed: int
    rate: int

    def at(self, cap: int) -> int:
        """The most that a call uses under this cap."""
        return self.fixed + -(-self.rate * cap // RATE_TOKENS)

    def room_in(self, headroom: int) -> int:
        """The largest cap whose amount is within `headroom`, which is `fixed` at least."""
        if self.rate == 0:
            return ROOM_MAX
        return min((headroom - self.fixed) * RATE_TOKENS // self.rate, ROOM_MAX)

    def is_exact_up_to(self, cap: int) -> bool:
        """Whether a store that counts in doubles computes it right, and no amount is too large."""
        within = self.rate <= RATE_MAX and self.rate * cap <= AMOUNT_MAX
        return within and self.fixed <= AMOUNT_MAX and self.at(cap) <= AMOUNT_MAX


@dataclass(frozen=True, slots=True)
class CapRange:
    """Between what a call may be capped, in output tokens of one answer.

    Attributes:
        most: what it may answer without being capped: its worst case.
        least: what is of use; it is refused where there is no room for that.
        comfort: it is not capped below this for the sake of other calls, only for want of room.
        share_permille: of the room that is left, what one call gets where that is more.
        written_max: no cap above it is written: the provider could refuse that. (Where the call
            gets its `most`, none is written.)
        cost: the most that it can cost, in nano-USD, whatever its counters count.
    """

    most: int
    least: int
    comfort: int
    share_permille: int
    cost: Slope
    written_max: int = ROOM_MAX

    def __post_init__(self) -> None:
        if not (1 <= self.least <= self.most <= ROOM_MAX and 0 <= self.comfort <= ROOM_MAX):
            raise ValueError("an output cap is between 1 and its most")
        if not 0 <= self.share_permille <= SHARE_WHOLE:
            raise ValueError("a share is at most all of it")
        if not self.least <= self.written_max <= ROOM_MAX:
            raise ValueError("a cap that is written is of use")
        if not self.cost.is_exact_up_to(self.most):
            raise ValueError("a cost is beyond what a store can count")

    def chosen(self, room: int) -> int:
        """The cap in this much room, which is `least` at least."""
        share = room * self.share_permille // SHARE_WHOLE
        cap = min(self.most, room, max(share, self.comfort, self.least))
        return cap if cap == self.most else min(cap, self.written_max)


def with_cap(particulars: str, cap: int, cost_nanousd: int) -> str:
    """A call's particulars, a JSON object with members, and what it was granted as the last two."""
    if not particulars:
        return ""
    return f'{particulars[:-1]},"estimate_nanousd":"{cost_nanousd}","output_cap":"{cap}"}}'
