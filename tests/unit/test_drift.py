"""Where counters differ from the books: only where nobody may have changed them without a row."""

from collections.abc import Sequence

import pytest

from extauthz.ledger import CLOCK_SKEW_MS_MAX, Posting, Row, RowOutcome, Tally
from extauthz.ledger.rolling import BUCKETS
from extauthz.service.audit import Auditor
from extauthz.service.drift import spent_drift
from extauthz.store.base import rolling_counter_key
from extauthz.store.bookkeeping import Cut
from extauthz.store.memory import MemoryStore

HOUR_MS, WIDTH_MS = 3_600_000, 37_916
NAME = f"agent/bot/rolling-1h/usd:rolling-{WIDTH_MS}"
KEY = rolling_counter_key("default", "agent/bot/rolling-1h/usd", HOUR_MS)
SPENT_AT_MS = 50_000 * WIDTH_MS
LEAVES_AT_MS = SPENT_AT_MS + BUCKETS * WIDTH_MS


def books() -> Tally:
    """Of one call that has spent 700."""
    posting = Posting(NAME, held=1000, charged=700, before=0, forget_at_ms=LEAVES_AT_MS + 10**9)
    tally = Tally()
    tally.add(Row(1, SPENT_AT_MS, RowOutcome.SETTLED, "a", 700, postings=(posting,)))
    return tally


@pytest.mark.parametrize("shows", [{}, {"50000": 700}, {"50000": 5}])
def test_a_bucket_that_is_about_to_leave_its_window_may_be_gone_already(
    shows: dict[str, int],
) -> None:
    """Whoever reserves tidies by a clock of its own, and writes no row."""
    at_ms = LEAVES_AT_MS - 2 * CLOCK_SKEW_MS_MAX

    assert spent_drift(KEY, {"held": 0, **shows}, books(), at_ms) == []


def test_a_bucket_that_every_clock_sees_in_its_window_must_be_there() -> None:
    at_ms = LEAVES_AT_MS - 2 * CLOCK_SKEW_MS_MAX - 1

    (drift,) = spent_drift(KEY, {"held": 0}, books(), at_ms)

    assert (drift.shown, drift.due) == (0, 700)


async def test_what_has_left_a_window_while_the_store_was_asked_is_no_drift() -> None:
    now_ms = LEAVES_AT_MS - 10 * CLOCK_SKEW_MS_MAX

    class Slow:
        """A store that answers after half a minute, in which somebody has tidied."""

        async def counter_keys(self, _org: str) -> list[str]:
            return [KEY]

        async def cut(self, _org: str, keys: Sequence[str]) -> Cut:
            nonlocal now_ms
            now_ms = LEAVES_AT_MS + 20 * CLOCK_SKEW_MS_MAX
            return Cut(1, (), tuple({"held": 0} for _ in keys))

        async def repair(self, *_: object, **__: object) -> bool:
            raise AssertionError

    class Past:
        def checkpoint(self) -> Tally:
            return books()

        def rows(self, _after_seq: int) -> None:
            raise AssertionError

    audit = await Auditor(Slow(), MemoryStore(), lambda: now_ms).audit("default", Past())

    assert audit.is_clean, audit
