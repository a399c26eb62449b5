"""In whatever order commands come: a store answers and stands as the specification does."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ledger_calls import DAY_MS, Call, Command, Expire, now_ms, tell
from servers import Server

from extauthz.ledger import (
    CapRange,
    Change,
    Charge,
    ClockSkewError,
    Hold,
    HoldsMismatchError,
    Ledger,
    Override,
    Release,
    Renew,
    Reserve,
    Reserved,
    Settle,
    Slope,
    Tally,
    bucket_width_ms,
    counter_name,
    width_of,
)
from extauthz.ledger.caps import ROOM_MAX
from extauthz.money import AMOUNT_MAX
from extauthz.store.base import counter_key, rolling_counter_key
from extauthz.store.memory import MemoryStore
from extauthz.store.redis import RedisStore
from extauthz.windows import ROLLING_LENGTHS_MS

BUDGETS = ("minute", "day", "month", "in_flight")
OVERRIDDEN = ["agent/bot/day/usd", "x"]
PAUSABLE = ("agent:bot", "team:crew")
KEYS = tuple(f"sha256:{digit * 64}" for digit in "0f")
FORGOTTEN_AT_ONCE_MS = -5000
NAMES = st.sampled_from(["a", "b", "c", "d"])
AMOUNTS = st.one_of(
    st.sampled_from([0, 1, 9, 10, AMOUNT_MAX // 2, AMOUNT_MAX - 1, AMOUNT_MAX]),
    st.integers(0, 10),
    st.integers(0, AMOUNT_MAX),
)
SLOPES = st.builds(
    Slope,
    st.one_of(st.integers(0, 10), st.integers(0, 10**13)),
    st.one_of(st.integers(0, 10), st.integers(0, 4_000), st.integers(0, 10**9)),
)
CAPS = st.one_of(st.integers(1, 10), st.integers(1, 128_000))
LIMITS = st.one_of(st.sampled_from([0, AMOUNT_MAX - 1, AMOUNT_MAX]), st.integers(0, 30))
HORIZONS_MS = st.sampled_from([DAY_MS, DAY_MS, DAY_MS, FORGOTTEN_AT_ONCE_MS])
PARTICULARS = st.sampled_from(["", '{"agent":"bot"}', '{"agent":"b\u00f6t\\n"}'])
LEASES_MS = st.sampled_from([-1500, 0, DAY_MS])
SOME_BUDGETS = st.sampled_from([BUDGETS[:1], BUDGETS[:2], BUDGETS[:3], BUDGETS])


class Twins(RuleBasedStateMachine):
    """The specification and a store under the same commands, on counters of the same org."""

    server: Server
    budgets = BUDGETS
    ahead_ms: tuple[int, ...] = (0,)
    """At which instants from now on the balances are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.org = Call().org
        self.memory = MemoryStore()
        self.redis = RedisStore.from_url(self.server.url, command_timeout_s=10)
        self.client = self.server.client()
        self.keys = [self.key(budget) for budget in self.budgets]
        self.held_on: dict[str, tuple[str, ...]] = {}
        self.lost: set[str] = set()
        """counters that do not show any more what the rows say"""

    def teardown(self) -> None:
        self.runner.run(self.redis.close())
        self.runner.close()
        self.client.close()

    def at_ms(self) -> int:
        """What every command says the time is."""
        return now_ms()

    def lasting(self, ms: int) -> int:
        """How long something is to be remembered."""
        return ms

    def key(self, budget: str) -> str:
        return counter_key(self.org, budget, 0)

    @property
    def ledger(self) -> Ledger:
        return self.memory._ledgers[self.org]

    def both(self, command: Command) -> Any:
        """Tell both, expect the same answer or the same refusal."""
        expected = self.runner.run(self.answer(self.memory, command))
        answer = self.runner.run(self.answer(self.redis, command))
        assert answer == expected
        return answer

    @staticmethod
    async def answer(store: MemoryStore | RedisStore, command: Command) -> Any:
        """The answer, or which refusal it was; told again if the machine stood still meanwhile."""
        for _ in range(10):
            try:
                return await tell(store, command)
            except HoldsMismatchError:
                return HoldsMismatchError
            except ClockSkewError:  # it has changed nothing
                command = dataclasses.replace(command, at_ms=now_ms())
        raise AssertionError("the clocks never agree")

    def draw_hold(
        self, data: st.DataObject, key: str, forget_at_ms: int, cap_range: CapRange | None
    ) -> Hold:
        """A hold whose limit is often the very edge of what fits, in full or under some cap."""
        slope = least = None
        amount = needed = data.draw(AMOUNTS)
        if cap_range is not None and (slope := data.draw(st.one_of(st.none(), SLOPES, SLOPES))):
            amount = slope.at(cap_range.most)
            least = data.draw(st.sampled_from([None, slope.at(cap_range.least)]))
            needed = slope.at(data.draw(st.integers(cap_range.least, 2 * cap_range.most)))
        (balance,) = self.ledger.balances([key], self.at_ms())
        edge = balance.spent + balance.held + needed + data.draw(st.sampled_from([0, 0, -1, 1]))
        limit = data.draw(st.one_of(LIMITS, st.just(min(max(edge, 0), AMOUNT_MAX))))
        return Hold(
            key,
            amount,
            limit,
            forget_at_ms,
            enforcing=data.draw(st.booleans()),
            transient="in_flight" in key,
            budget_id=data.draw(st.sampled_from([None, *OVERRIDDEN])),
            slope=slope,
            least=least,
        )

    @staticmethod
    def draw_cap_range(data: st.DataObject) -> CapRange | None:
        """Half of the calls may be capped."""
        if data.draw(st.booleans()):
            return None
        least, most = sorted((data.draw(CAPS), data.draw(CAPS)))
        share = data.draw(st.sampled_from([0, 1, 250, 333, 1000]))
        written_max = data.draw(st.one_of(st.just(ROOM_MAX), st.integers(least, 2 * most)))
        return CapRange(most, least, data.draw(CAPS), share, data.draw(SLOPES), written_max)

    @rule(
        name=NAMES,
        budgets=SOME_BUDGETS,
        data=st.data(),
        lease_ms=LEASES_MS,
        forget_in_ms=st.sampled_from([DAY_MS, 2 * DAY_MS]),
        recoverable_ms=st.sampled_from([0, 0, DAY_MS]),
    )
    def reserve(
        self,
        name: str,
        budgets: tuple[str, ...],
        data: st.DataObject,
        lease_ms: int,
        forget_in_ms: int,
        recoverable_ms: int,
    ) -> None:
        forget_at_ms = self.at_ms() + self.lasting(forget_in_ms)
        cap_range = self.draw_cap_range(data)
        holds = tuple(
            self.draw_hold(data, self.key(budget), forget_at_ms, cap_range) for budget in budgets
        )
        at_ms = self.at_ms()  # after the drawing, which may take longer than clocks may differ
        was_known = name in self.ledger.reservations
        key_hash = data.draw(st.sampled_from(["", "", "", *KEYS]))
        remember_until_ms = recoverable_ms and at_ms + self.lasting(recoverable_ms)
        answer = self.both(
            Reserve(
                name,
                self.org,
                at_ms,
                at_ms + lease_ms,
                holds,
                PAUSABLE,
                key_hash=key_hash,
                estimate_nanousd=holds[0].amount,
                particulars='{"reserved":true}',
                remember_until_ms=remember_until_ms,
                cap_range=cap_range,
            )
        )
        if isinstance(answer, Reserved) and not was_known:
            self.held_on[name] = tuple(hold.key for hold in holds)
            for hold, balance, limit in zip(holds, answer.balances, answer.limits, strict=True):
                within = balance.spent + balance.held <= limit
                assert within or not hold.enforcing, "rule 1"

    def keys_of(self, name: str, budgets: tuple[str, ...], *, right: bool) -> tuple[str, ...]:
        """Mostly the counters of the reservation: naming others is refused, which is soon dull."""
        chosen = tuple(self.key(budget) for budget in budgets)
        return self.held_on.get(name, chosen) if right else chosen

    @rule(
        name=NAMES,
        budgets=SOME_BUDGETS,
        right=st.sampled_from([True, True, True, False]),
        data=st.data(),
        age_ms=st.sampled_from([0, 0, DAY_MS * 2]),
        horizon_ms=HORIZONS_MS,
        in_batch=st.booleans(),
    )
    def settle(
        self,
        name: str,
        budgets: tuple[str, ...],
        right: bool,
        data: st.DataObject,
        age_ms: int,
        horizon_ms: int,
        in_batch: bool,
    ) -> None:
        keys = self.keys_of(name, budgets, right=right)
        forget_at_ms = self.at_ms() + self.lasting(DAY_MS)
        charges = tuple(Charge(key, data.draw(AMOUNTS), forget_at_ms) for key in keys)
        words = (data.draw(AMOUNTS), data.draw(PARTICULARS))
        at_ms = self.at_ms()
        command = Settle(
            name, self.org, at_ms, at_ms - age_ms, self.lasting(horizon_ms), charges, *words
        )
        if not in_batch:
            self.both(command)
            return
        batch = [command, command]
        expected = self.runner.run(self.memory.settle_many(batch))
        answers = self.runner.run(self.redis.settle_many(batch))
        assert [self.plain(answer) for answer in answers] == [self.plain(e) for e in expected]

    @staticmethod
    def plain(answer: Any) -> Any:
        return type(answer) if isinstance(answer, Exception) else answer

    @rule(
        name=NAMES,
        budgets=SOME_BUDGETS,
        right=st.sampled_from([True, True, True, False]),
        horizon_ms=HORIZONS_MS,
        abandoned=st.booleans(),
        particulars=PARTICULARS,
    )
    def release(
        self,
        name: str,
        budgets: tuple[str, ...],
        right: bool,
        horizon_ms: int,
        abandoned: bool,
        particulars: str,
    ) -> None:
        keys = self.keys_of(name, budgets, right=right)
        words = (keys, abandoned, particulars)
        self.both(Release(name, self.org, self.at_ms(), self.lasting(horizon_ms), *words))

    @rule(name=NAMES, lease_ms=LEASES_MS, observed=st.lists(AMOUNTS, max_size=4), nanousd=AMOUNTS)
    def renew(self, name: str, lease_ms: int, observed: list[int], nanousd: int) -> None:
        at_ms = self.at_ms()
        self.both(Renew(name, self.org, at_ms, at_ms + lease_ms, tuple(observed), nanousd))

    @rule(count=st.integers(1, 3), horizon_ms=HORIZONS_MS)
    def expire(self, count: int, horizon_ms: int) -> None:
        self.both(Expire(self.org, self.at_ms(), self.lasting(horizon_ms), count))

    @rule(
        id_=st.sampled_from(["o1", "o2", "o3", None]),
        change=st.sampled_from(Change),
        budget=st.sampled_from(OVERRIDDEN),
        who=st.sampled_from(PAUSABLE),
        key_hash=st.sampled_from(KEYS),
        amount=AMOUNTS,
        until_ms=st.sampled_from([None, None, -1500, *(n * DAY_MS // 2 for n in range(1, 5))]),
    )
    def override(
        self,
        id_: str | None,
        change: Change,
        budget: str,
        who: str,
        key_hash: str,
        amount: int,
        until_ms: int | None,
    ) -> None:
        at_ms = self.at_ms()
        targets = {
            Change.PAUSE: who,
            Change.RESUME: who,
            Change.ADMIT: "agent:else" if amount == 1 else PAUSABLE[0],
            Change.REVOKE: PAUSABLE[0],
        }
        self.both(
            Override(
                id_ or str(uuid4()),
                self.org,
                at_ms,
                change,
                targets.get(change, budget),
                at_ms + self.lasting(DAY_MS),
                amount,
                None if until_ms is None else at_ms + until_ms,
                key_hash=key_hash if change in (Change.ADMIT, Change.REVOKE) else "",
            )
        )

    @rule()
    def all_resume(self) -> None:
        for who in PAUSABLE:
            at_ms = self.at_ms()
            self.both(Override(str(uuid4()), self.org, at_ms, Change.RESUME, who, at_ms + DAY_MS))

    @precondition(lambda self: self.ledger.counters)
    @rule(at=st.integers(0, len(BUDGETS) - 1))
    def a_counter_is_lost(self, at: int) -> None:
        key = self.keys[at]
        self.client.delete(key)
        if self.ledger.counters.pop(key, None) is not None:
            self.lost.add(counter_name(key))

    @precondition(lambda self: self.ledger.reservations)
    @rule(name=NAMES)
    def a_reservation_is_lost(self, name: str) -> None:
        self.client.delete(f"xa1:{{{self.org}}}:r:{name}")
        for index in ("leases", "unconfirmed"):
            self.client.zrem(f"xa1:{{{self.org}}}:{index}", name)
        self.ledger.reservations.pop(name, None)

    @invariant()
    def both_stand_alike(self) -> None:
        at_ms = self.at_ms()

        async def standing(store: MemoryStore | RedisStore) -> Any:
            balances = [
                balance
                for ahead_ms in self.ahead_ms
                for balance in await store.balances(self.org, self.keys, at_ms + ahead_ms)
            ]
            overrides = [
                await store.overrides(self.org, at_ms + ahead_ms)
                for ahead_ms in range(0, 2 * DAY_MS, DAY_MS // 2)
            ]
            open_ = await store.open_reservations(self.org)
            rows = await store.rows(self.org, 1, 1000)
            unconfirmed = await store.unconfirmed_ids(self.org)
            known = await store.reservations(self.org, unconfirmed)
            return balances, overrides, open_, sorted(known), rows

        expected = self.runner.run(standing(self.memory))
        assert self.runner.run(standing(self.redis)) == expected
        assert all(balance.spent >= 0 and balance.held >= 0 for balance in expected[0])

    @invariant()
    def the_rows_prove_what_is_spent(self) -> None:
        tally = Tally()
        for row in self.ledger.books.rows:
            tally.add(row)
        at_ms = self.at_ms()
        for key, counter in self.ledger.counters.items():
            if counter_name(key) not in self.lost:
                spent = counter.balance(width_of(key), at_ms).spent
                assert tally.spent(counter_name(key), at_ms) == spent, key

    @invariant()
    def every_key_but_an_open_reservation_has_an_end(self) -> None:
        for key in self.keys:
            assert self.client.pexpiretime(key) != -1, key
        for name in sorted(self.held_on.keys() | self.ledger.reservations.keys()):
            key = f"xa1:{{{self.org}}}:r:{name}"
            is_open = self.client.hget(key, "state") == "held"
            assert (self.client.pexpiretime(key) == -1) == is_open, key


HOUR_MS = 3_600_000
WIDTH_MS = bucket_width_ms(HOUR_MS)
LONG_FROM_NOW_MS = 4_000_000_000_000
"""Nothing that a server forgets by its own clock is forgotten before."""


class TwinsInMotion(Twins):
    """The same with a clock that is moved by hand, over the buckets of rolling windows."""

    budgets = ("1h", "24h", "day", "in_flight")
    ahead_ms = (0, *(n * WIDTH_MS for n in (1, 47, 48, 49, 94, 95, 96)))

    def __init__(self) -> None:
        self.time = LONG_FROM_NOW_MS
        super().__init__()
        self.memory = MemoryStore(self.at_ms)

    def at_ms(self) -> int:
        return self.time

    def lasting(self, ms: int) -> int:
        return ms + 10_000 * DAY_MS

    def key(self, budget: str) -> str:
        by_name = dict(zip(BUDGETS, self.budgets, strict=True)) | {b: b for b in self.budgets}
        length_ms = ROLLING_LENGTHS_MS.get(by_name[budget])
        if length_ms is None:
            return super().key(budget)
        return rolling_counter_key(self.org, by_name[budget], length_ms)

    @rule(
        ms=st.sampled_from(
            [1, WIDTH_MS // 2, WIDTH_MS, 47 * WIDTH_MS, 95 * WIDTH_MS, 96 * WIDTH_MS, DAY_MS]
        ),
        back_ms=st.sampled_from([0, 0, 1, 900]),
    )
    def time_passes(self, ms: int, back_ms: int) -> None:
        """And at times a caller comes whose clock is a little behind."""
        self.time += ms - back_ms
        self.see_what_counts()

    def see_what_counts(self) -> None:
        """As a reserve sees it: one that never fits."""
        holds = tuple(Hold(key, 1, 0, self.time + 10_000 * DAY_MS) for key in self.keys)
        self.both(Reserve("probe", self.org, self.time, self.time, holds))

    @rule(
        name=NAMES,
        held=st.integers(0, 10),
        cost=st.integers(0, 20),
        late_ms=st.sampled_from([0, WIDTH_MS, 47 * WIDTH_MS, 95 * WIDTH_MS, 96 * WIDTH_MS]),
        forever_ms=st.just(10_000 * DAY_MS),
    )
    def a_lease_runs_out_and_the_cost_is_told_later(
        self, name: str, held: int, cost: int, late_ms: int, forever_ms: int
    ) -> None:
        """Drawn one by one, these steps would hardly ever follow each other."""
        at_ms, forget_at_ms = self.time, self.time + forever_ms
        holds = tuple(Hold(key, held, AMOUNT_MAX, forget_at_ms) for key in self.keys[:3])
        self.both(Reserve(name, self.org, at_ms, at_ms, holds))
        self.both(Expire(self.org, at_ms, forever_ms, 100))
        self.time += late_ms
        charges = tuple(Charge(key, cost, forget_at_ms) for key in self.keys[:3])
        self.both(Settle(name, self.org, self.time, at_ms, forever_ms, charges))
        for ms in (94 * WIDTH_MS, WIDTH_MS, WIDTH_MS):
            self.time += ms
            self.see_what_counts()


SizedRun = Callable[..., None]


@pytest.fixture
def run_twins(any_server: Server) -> SizedRun:
    def run(examples: int, steps: int, twins: type[Twins] = Twins) -> None:
        machine = type("TwinsOfThisServer", (twins,), {"server": any_server})
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

    return run


def test_a_store_cannot_be_told_from_the_specification(run_twins: SizedRun) -> None:
    run_twins(30, 30)


@pytest.mark.usefixtures("without_skew_checks")
def test_a_store_cannot_be_told_from_the_specification_as_time_goes_by(run_twins: SizedRun) -> None:
    run_twins(30, 40, TwinsInMotion)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("without_skew_checks")
def test_a_store_cannot_be_told_from_the_specification_as_much_time_goes_by(
    run_twins: SizedRun,
) -> None:
    run_twins(2000, 60, TwinsInMotion)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_store_cannot_be_told_from_the_specification_in_the_long_run(run_twins: SizedRun) -> None:
    run_twins(2000, 60)
