"""Every store keeps overrides and rolling windows as `extauthz.ledger` says."""

import asyncio

import pytest
from ledger_calls import DAY_MS, Call, now_ms
from servers import Server

from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
    Applied,
    Balance,
    BudgetOverride,
    Change,
    Charge,
    ClockSkewError,
    Hold,
    Key,
    KeyGone,
    Override,
    Overrides,
    Part,
    Paused,
    Refused,
    Reserve,
    Reserved,
    Settle,
)
from extauthz.ledger.overrides import LIMITS_MAX
from extauthz.ledger.rolling import BUCKETS
from extauthz.money import AMOUNT_MAX
from extauthz.store.base import LedgerStore, org_prefix
from extauthz.store.redis import RedisStore

BUDGET = "agent/bot/day/usd"


def change(call: Call, what: Change, target: str = BUDGET, **fields: object) -> Override:
    at_ms = now_ms()
    told: dict = {"id": Call().id, "at_ms": at_ms, "forget_at_ms": at_ms + DAY_MS} | fields
    return Override(org=call.org, change=what, target=target, **told)


def asking(
    call: Call, amount: int = 1, limit: int = 10, budget_id: str = BUDGET, key_hash: str = ""
) -> Reserve:
    at_ms = now_ms()
    hold = Hold(call.keys[0], amount, limit, at_ms + DAY_MS, budget_id=budget_id)
    who = ("agent:bot", "team:crew")
    return Reserve(
        call.id, call.org, at_ms, at_ms + DAY_MS, (hold,), pausable_as=who, key_hash=key_hash
    )


async def test_a_limit_is_in_force_at_the_next_reserve_and_told_with_its_answer(
    store: LedgerStore,
) -> None:
    call = Call()
    await store.override(change(call, Change.SET, amount=3))
    assert await store.reserve(asking(call, 4)) == Refused(call.id, (Balance(),), (3,))
    await store.override(change(call, Change.TOP_UP, amount=2))
    assert await store.reserve(asking(call, 4)) == Reserved(call.id, (Balance(0, 4),), (5,))
    await store.override(change(call, Change.UNSET))
    again = call.sibling()
    assert await store.reserve(asking(again)) == Reserved(again.id, (Balance(0, 5),), (10,))
    other = call.sibling()
    assert (await store.reserve(asking(other, budget_id="other"))).limits == (10,)  # type: ignore[union-attr]


@pytest.mark.parametrize("what", [Change.SET, Change.TOP_UP])
async def test_what_has_ended_is_in_force_no_longer(store: LedgerStore, what: Change) -> None:
    call = Call()
    await store.override(change(call, what, amount=90, until_ms=now_ms() - 1))
    assert isinstance(await store.reserve(asking(call, 11)), Refused)
    assert await store.overrides(call.org, now_ms()) == Overrides()


async def test_an_override_that_ends_while_one_waits_is_over(store: LedgerStore) -> None:
    call, until_ms = Call(), now_ms() + 150
    await store.override(change(call, Change.PAUSE, "agent:bot", until_ms=until_ms))
    assert await store.reserve(asking(call)) == Paused(call.id, until_ms)
    while isinstance(await store.reserve(asking(call)), Paused):
        assert now_ms() < until_ms + 1000
        await asyncio.sleep(0.01)
    assert now_ms() >= until_ms


@pytest.mark.parametrize("who", ["agent:bot", "team:crew"])
async def test_a_pause_holds_until_it_is_resumed_and_changes_nothing(
    store: LedgerStore, who: str
) -> None:
    call = Call()
    await store.override(change(call, Change.PAUSE, who))
    assert await store.reserve(asking(call)) == Paused(call.id, None)
    assert await store.balances(call.org, call.keys, now_ms()) == (Balance(), Balance())
    await store.override(change(call, Change.RESUME, who))
    assert isinstance(await store.reserve(asking(call)), Reserved)


@pytest.mark.parametrize("earlier", [True, False])
async def test_a_shorter_pause_does_not_end_a_longer_one(store: LedgerStore, earlier: bool) -> None:
    call, until_ms = Call(), now_ms() + DAY_MS if earlier else None
    await store.override(change(call, Change.PAUSE, "agent:bot", until_ms=until_ms))
    soon_ms = now_ms() + DAY_MS // 2
    await store.override(change(call, Change.PAUSE, "agent:bot", until_ms=soon_ms))
    assert await store.reserve(asking(call)) == Paused(call.id, until_ms)
    await store.override(change(call, Change.RESUME, "agent:bot"))
    await store.override(change(call, Change.PAUSE, "agent:bot", until_ms=soon_ms))
    assert await store.reserve(asking(call)) == Paused(call.id, soon_ms)


async def test_the_longest_of_two_pauses_is_told(store: LedgerStore) -> None:
    call, until_ms = Call(), now_ms() + DAY_MS
    for who, end_ms in (("agent:bot", until_ms), ("team:crew", until_ms - 1)):
        await store.override(change(call, Change.PAUSE, who, until_ms=end_ms))
    assert await store.reserve(asking(call)) == Paused(call.id, until_ms)
    await store.override(change(call, Change.PAUSE, "team:crew"))
    assert await store.reserve(asking(call)) == Paused(call.id, None)


async def test_a_repeat_changes_nothing_and_a_contradiction_neither(store: LedgerStore) -> None:
    call = Call()
    top_up = change(call, Change.TOP_UP, amount=5)
    assert await store.override(top_up) is Applied.APPLIED
    assert await store.override(top_up) is Applied.DUPLICATE
    contradiction = change(call, Change.TOP_UP, amount=6, id=top_up.id)
    assert await store.override(contradiction) is Applied.CONFLICT
    assert (await store.overrides(call.org, now_ms())).limit_in_force(BUDGET, 10, now_ms()) == 15


async def test_all_that_holds_can_be_listed(store: LedgerStore) -> None:
    call, until_ms = Call(), now_ms() + DAY_MS
    await store.override(change(call, Change.SET, amount=7, until_ms=until_ms))
    await store.override(change(call, Change.TOP_UP, amount=1, until_ms=until_ms))
    await store.override(change(call, Change.TOP_UP, amount=AMOUNT_MAX))
    await store.override(change(call, Change.TOP_UP, amount=2, until_ms=until_ms))
    await store.override(change(call, Change.PAUSE, "team:crew", until_ms=until_ms))
    assert await store.overrides(call.org, now_ms()) == Overrides(
        {BUDGET: BudgetOverride((Part(7, until_ms),), (Part(AMOUNT_MAX), Part(3, until_ms)))},
        {"team:crew": until_ms},
    )
    assert await store.overrides(Call().org, now_ms()) == Overrides()


async def test_limits_lie_in_the_order_of_their_ends_and_the_next_one_counts(
    store: LedgerStore,
) -> None:
    call, until_ms = Call(), now_ms() + DAY_MS

    async def limit_at(at_ms: int) -> int:
        return (await store.overrides(call.org, at_ms)).limit_in_force(BUDGET, 10, at_ms)

    await store.override(change(call, Change.SET, amount=50))
    await store.override(change(call, Change.TOP_UP, amount=5))
    for n in range(LIMITS_MAX + 3):
        await store.override(change(call, Change.SET, amount=n, until_ms=until_ms - n))
        assert (await store.reserve(asking(call, 90))).limits == (n,)  # type: ignore[union-attr]
    assert [await limit_at(at) for at in (until_ms - 1, until_ms)] == [0, 50]
    found = (await store.overrides(call.org, now_ms())).budgets[BUDGET]
    assert (len(found.limits), found.top_ups) == (LIMITS_MAX, ())
    await store.override(change(call, Change.SET, amount=7))
    assert (await store.overrides(call.org, now_ms())).budgets == {
        BUDGET: BudgetOverride((Part(7),))
    }


async def test_a_limit_that_ends_while_one_waits_gives_way_to_the_one_before(
    store: LedgerStore,
) -> None:
    call = Call()
    await store.override(change(call, Change.SET, amount=50))
    until_ms = now_ms() + 150
    await store.override(change(call, Change.SET, amount=3, until_ms=until_ms))
    while (answer := await store.reserve(asking(call, 51))).limits == (3,):  # type: ignore[union-attr]
        assert now_ms() < until_ms + 1000
        await asyncio.sleep(0.01)
    assert now_ms() >= until_ms
    assert answer == Refused(call.id, (Balance(),), (50,))


async def test_an_override_by_a_clock_that_is_off_changes_nothing(store: LedgerStore) -> None:
    call = Call()
    with pytest.raises(ClockSkewError):
        await store.override(
            change(call, Change.SET, amount=3, at_ms=now_ms() + CLOCK_SKEW_MS_MAX + 500)
        )
    assert await store.overrides(call.org, now_ms()) == Overrides()


def rolling(call: Call, width_ms: int) -> str:
    """Widths that no config can have, so that a window goes by in the time of a test."""
    return f"{org_prefix(call.org)}c:agent/bot/rolling/usd:rolling-{width_ms}"


async def spend(store: LedgerStore, call: Call, key: str, amount: int) -> int:
    """Reserve and settle; when it was settled."""
    at_ms = now_ms()
    hold = Hold(key, amount, AMOUNT_MAX, at_ms + DAY_MS)
    await store.reserve(Reserve(call.id, call.org, at_ms, at_ms + DAY_MS, (hold,)))
    at_ms = now_ms()
    charge = Charge(key, amount, at_ms + DAY_MS)
    await store.settle(Settle(call.id, call.org, at_ms, at_ms, DAY_MS, (charge,)))
    return at_ms


async def test_what_was_spent_leaves_a_rolling_window_when_its_time_is_over(
    store: LedgerStore,
) -> None:
    call, width_ms = Call(), 3
    key = rolling(call, width_ms)
    spent_at_ms = await spend(store, call, key, AMOUNT_MAX)
    while (await store.balances(call.org, [key], at_ms := now_ms()))[0].spent:
        assert at_ms < spent_at_ms + BUCKETS * width_ms
        await asyncio.sleep(0.005)
    assert at_ms > spent_at_ms + (BUCKETS - 1) * width_ms


async def test_the_sum_of_many_buckets_is_exact(store: LedgerStore) -> None:
    call = Call()
    key = rolling(call, 60_000)
    for _ in range(3):
        await spend(store, call.sibling(), key, AMOUNT_MAX - 1)
    assert await store.balances(call.org, [key], now_ms()) == (Balance(3 * (AMOUNT_MAX - 1)),)
    hold = Hold(key, 1, AMOUNT_MAX, now_ms() + DAY_MS)
    answer = await store.reserve(Reserve(call.id, call.org, now_ms(), now_ms(), (hold,)))
    assert answer == Refused(call.id, (Balance(3 * (AMOUNT_MAX - 1)),), (AMOUNT_MAX,))


async def test_old_buckets_go_with_the_next_write_and_the_counter_outlives_the_rest(
    redis_store: RedisStore, any_server: Server
) -> None:
    call, client = Call(), any_server.client()
    key, width_ms = rolling(call, 1), 1
    spent_at_ms = await spend(redis_store, call.sibling(), key, 1)
    first = set(client.hkeys(key))
    while (await redis_store.balances(call.org, [key], at_ms := now_ms()))[0].spent:
        assert at_ms < spent_at_ms + BUCKETS * width_ms
        await asyncio.sleep(0.005)
    await spend(redis_store, call.sibling(), key, 1)
    assert first & set(client.hkeys(key)) == {"held"}
    assert client.pexpiretime(key) > now_ms() + BUCKETS * width_ms
    client.close()


async def test_a_rolling_counter_is_remembered_until_what_was_spent_has_left(
    redis_store: RedisStore, any_server: Server
) -> None:
    call, client, width_ms = Call(), any_server.client(), 60_000
    key, at_ms = rolling(call, width_ms), now_ms()
    hold = Hold(key, 1, 10, at_ms + 5000)
    await redis_store.reserve(Reserve(call.id, call.org, at_ms, at_ms + DAY_MS, (hold,)))
    assert client.pexpiretime(key) == at_ms + BUCKETS * width_ms
    client.close()


async def test_the_id_of_an_override_is_forgotten_and_its_limit_is_not(
    redis_store: RedisStore, any_server: Server
) -> None:
    call, client = Call(), any_server.client()
    command = change(call, Change.SET, amount=3)
    await redis_store.override(command)
    prefix = org_prefix(call.org)
    assert client.pexpiretime(f"{prefix}o:{command.id}") == command.forget_at_ms
    assert client.pexpiretime(f"{prefix}overrides") == -1
    assert client.hgetall(f"{prefix}overrides") == {BUDGET: "=3@"}
    await redis_store.override(change(call, Change.UNSET))
    assert not client.exists(f"{prefix}overrides")
    client.close()


KEY = f"sha256:{'ab' * 32}"


async def test_a_key_admits_its_agent_until_it_is_revoked(store: LedgerStore) -> None:
    call = Call()
    assert await store.reserve(asking(call, key_hash=KEY)) == KeyGone(call.id)
    admit = change(call, Change.ADMIT, "agent:bot", key_hash=KEY)
    await store.override(admit)
    assert await store.key(call.org, KEY) == Key("agent:bot", admit.at_ms)
    assert isinstance(await store.reserve(asking(call, key_hash=KEY)), Reserved)
    await store.override(change(call, Change.REVOKE, "agent:bot", key_hash=KEY))
    assert await store.key(call.org, KEY) is None
    other = call.sibling()
    assert await store.reserve(asking(other, key_hash=KEY)) == KeyGone(other.id)
    assert await store.open_reservations(call.org) == 1


async def test_a_key_of_another_agent_admits_nobody(store: LedgerStore) -> None:
    call = Call()
    await store.override(change(call, Change.ADMIT, "agent:other", key_hash=KEY))
    assert await store.reserve(asking(call, key_hash=KEY)) == KeyGone(call.id)


async def test_a_key_has_the_end_that_was_said_last_and_stays_listed(store: LedgerStore) -> None:
    call, past_ms = Call(), now_ms() - 1
    admit = change(call, Change.ADMIT, "agent:b@t@5", key_hash=KEY)
    await store.override(admit)
    later = change(call, Change.ADMIT, "agent:b@t@5", key_hash=KEY, until_ms=past_ms)
    await store.override(later)
    listed = (await store.overrides(call.org, now_ms())).keys
    assert listed == {KEY: Key("agent:b@t@5", admit.at_ms, past_ms)}
    assert await store.reserve(asking(call, key_hash=KEY)) == KeyGone(call.id)


@pytest.mark.parametrize(
    ("target", "key_hash"), [("agent:bot", "xa_the_key_itself"), ("agent:b t", KEY), ("bot", KEY)]
)
def test_a_change_of_a_key_names_a_hash_and_an_agent(target: str, key_hash: str) -> None:
    with pytest.raises(ValueError, match=r"hash|agent:NAME"):
        change(Call(), Change.ADMIT, target, key_hash=key_hash)
