"""The specification of the ledger: two phases, like a card payment, and one ending each.

A *counter* is one budget in one window: `spent` (settled) and `held` (open reservations). A
*reservation* holds an amount on several counters at once. The rules, which never bend:

1. A reservation is granted only if on every enforcing counter `spent + held + amount <= limit`.
   Otherwise nothing changes, anywhere. Where the output of a call may be capped (caps.py), the cap
   is chosen and its amounts are held in the same step; without room for the least cap it is
   refused.
2. Every reservation ends exactly once. A command that comes again changes nothing and answers what
   the first one answered; a settlement that contradicts the first is reported, never applied.
3. What is not known to be free is charged: a lease that runs out becomes spent, and only a later
   settlement, which knows the true cost, corrects it.
4. A settlement is a fact. It is applied even above its reservation (overshoot), and even to a
   reservation that the store has lost (recovered) as long as its windows are remembered.

5. No counter goes below zero, even if it was lost meanwhile: that would be room nobody granted.
6. A command that raises (`HoldsMismatchError`, `CounterRangeError`) has changed nothing.

| from | command | to | outcome | each counter |
|---|---|---|---|---|
| - | reserve, fits | held | - | held += amount |
| - | reserve, does not fit | - | - | unchanged |
| - | reserve, agent or team paused, or its key revoked or ended | - | - | unchanged |
| - | abandon, release | released | released | unchanged; a later reserve of the id is refused |
| - | settle, young enough | settled | recovered | spent += cost |
| - | settle, too old or a counter is forgotten | - | dead_letter | unchanged |
| - | renew, lease runs out | - | - | unchanged |
| held | reserve | held | - | unchanged |
| held | renew | held | - | lease moves on |
| held | settle | settled | settled | held -= amount; spent += cost |
| held | release, abandon | released | released | held -= amount |
| held | lease runs out | expired | expired | held -= amount; spent += max(amount, observed) |
| settled, released, expired | reserve, renew | as it was | - | unchanged |
| expired | settle | settled | late | spent += cost - charged |
| expired | release | settled | late | spent -= charged |
| released | settle | settled | anomaly | spent += cost |
| settled | settle, same cost | settled | duplicate | unchanged |
| settled | settle, other cost; release | settled | conflict | unchanged |
| released | release, abandon | released | duplicate | unchanged |

What is spent on a counter is one number in a calendar window, buckets in a rolling one
(rolling.py). The limit is that of the config file unless an override holds (overrides.py).

`Ledger` (state_machine.py) runs this table over plain dictionaries. `store/memory.py` serves it;
`store/scripts/*.lua` are the same table for Redis; one conformance suite holds them together.
"""

from extauthz.ledger.books import Books
from extauthz.ledger.caps import RATE_MAX, RATE_TOKENS, SHARE_WHOLE, CapRange, Slope
from extauthz.ledger.commands import (
    CLOCK_SKEW_MS_MAX,
    COUNTER_MAX,
    AlreadyEnded,
    Balance,
    Charge,
    ClockSkewError,
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
    ReserveAnswer,
    Reserved,
    Settle,
    State,
    fits,
    fits_all,
)
from extauthz.ledger.counter import Counter
from extauthz.ledger.endings import Endings
from extauthz.ledger.keys import KEYS_MAX, Key, KeyGone
from extauthz.ledger.overrides import (
    Applied,
    BudgetOverride,
    Change,
    Override,
    OverrideBook,
    Overrides,
    Part,
)
from extauthz.ledger.rolling import bucket_width_ms, oldest_bucket, width_of
from extauthz.ledger.rows import Posting, Row, RowOutcome, counter_name
from extauthz.ledger.sealing import Seal, Sealed, Standing
from extauthz.ledger.state_machine import Ledger
from extauthz.ledger.tally import RowGapError, Tally

__all__ = [
    "CLOCK_SKEW_MS_MAX",
    "COUNTER_MAX",
    "KEYS_MAX",
    "RATE_MAX",
    "RATE_TOKENS",
    "SHARE_WHOLE",
    "AlreadyEnded",
    "Applied",
    "Balance",
    "Books",
    "BudgetOverride",
    "CapRange",
    "Change",
    "Charge",
    "ClockSkewError",
    "Counter",
    "CounterRangeError",
    "Ending",
    "Endings",
    "Hold",
    "HoldsMismatchError",
    "Key",
    "KeyGone",
    "Ledger",
    "Outcome",
    "Override",
    "OverrideBook",
    "Overrides",
    "Part",
    "Paused",
    "Posting",
    "Refused",
    "Release",
    "Renew",
    "Reserve",
    "ReserveAnswer",
    "Reserved",
    "Row",
    "RowGapError",
    "RowOutcome",
    "Seal",
    "Sealed",
    "Settle",
    "Slope",
    "Standing",
    "State",
    "Tally",
    "bucket_width_ms",
    "counter_name",
    "fits",
    "fits_all",
    "oldest_bucket",
    "width_of",
]
