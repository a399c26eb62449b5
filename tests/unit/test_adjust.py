"""An operator's correction goes the way of every settlement, and contradicts none."""

import time
from dataclasses import replace

import pytest
from service_rules import DOLLAR, agent, budget, rules

from extauthz.ledger import Balance, Hold, Outcome, Release, Reserve
from extauthz.policies import Template, Unit
from extauthz.server.adjust import AdjustError, Adjustment, adjusted
from extauthz.store.base import counter_key
from extauthz.store.memory import MemoryStore

HORIZON_MS = 86_400_000
POLICIES = rules(
    agent(
        budget(100), budget(1000, unit=Unit.TOKENS), budget(9, unit=Unit.REQUESTS), max_in_flight=5
    )
).policies
BUDGETS = ("agent/bot/day/usd", "agent/bot/day/tokens", "agent/bot/day/requests")
KEYS = (
    *(counter_key("default", name, 0) for name in BUDGETS),
    counter_key("default", "agent/bot/in_flight", None),
)
AMOUNTS = (10 * DOLLAR, 500, 1, 1)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def reserved(
    store: MemoryStore, *, lease_ms: int = -1, keys: tuple[str, ...] = KEYS, particulars: str = ""
) -> None:
    at_ms = now_ms()
    holds = tuple(
        Hold(key, amount, 10**12, at_ms + HORIZON_MS, transient=key.endswith("in_flight:total"))
        for key, amount in zip(keys, AMOUNTS, strict=False)
    )
    await store.reserve(
        Reserve("call", "default", at_ms, at_ms + lease_ms, holds, particulars=particulars)
    )


async def spent(store: MemoryStore) -> list[int]:
    balances = await store.balances("default", KEYS, now_ms())
    assert all(balance.held == 0 for balance in balances)
    return [balance.spent for balance in balances]


def to(dollars: int, tokens: int | None = None) -> Adjustment:
    return Adjustment("call", dollars * DOLLAR, tokens, "the invoice says so")


async def test_what_a_lease_charged_is_replaced_by_the_true_cost() -> None:
    store = MemoryStore()
    await reserved(store)
    await store.expire("default", now_ms(), HORIZON_MS, 10)
    assert await spent(store) == [10 * DOLLAR, 500, 1, 0]

    assert (await adjusted(store, POLICIES, to(3))).outcome is Outcome.LATE
    assert await spent(store) == [3 * DOLLAR, 500, 1, 0]

    assert (await adjusted(store, POLICIES, to(3))).outcome is Outcome.DUPLICATE
    with pytest.raises(AdjustError, match="is final"):
        await adjusted(store, POLICIES, to(4))
    assert await spent(store) == [3 * DOLLAR, 500, 1, 0]


@pytest.mark.parametrize("cost_nanousd", [0, 1])
async def test_what_is_charged_in_another_unit_is_not_taken_for_the_cost(cost_nanousd: int) -> None:
    store = MemoryStore()
    await reserved(store)
    await adjusted(store, POLICIES, to(3, 77))

    with pytest.raises(AdjustError, match="is final"):
        await adjusted(store, POLICIES, Adjustment("call", cost_nanousd, None, "a wrong invoice"))


async def test_an_open_call_is_settled_if_its_tokens_are_said_too() -> None:
    store = MemoryStore()
    await reserved(store, lease_ms=900_000)

    with pytest.raises(AdjustError, match="--tokens"):
        await adjusted(store, POLICIES, to(3))
    assert (await adjusted(store, POLICIES, to(3, 77))).outcome is Outcome.SETTLED

    assert await spent(store) == [3 * DOLLAR, 77, 1, 0]


async def test_what_was_given_back_can_be_charged_after_all() -> None:
    store = MemoryStore()
    await reserved(store)
    await store.release(Release("call", "default", now_ms(), HORIZON_MS, KEYS))

    assert (await adjusted(store, POLICIES, to(3))).outcome is Outcome.ANOMALY
    assert await spent(store) == [3 * DOLLAR, 0, 1, 0]


async def test_an_unknown_reservation_is_not_made_up() -> None:
    store = MemoryStore()

    with pytest.raises(AdjustError, match="no reservation of this id is known"):
        await adjusted(store, POLICIES, to(3))

    await store.release(Release("call", "default", now_ms(), HORIZON_MS, KEYS))
    with pytest.raises(AdjustError, match="before it was ever held"):
        await adjusted(store, POLICIES, to(3))
    assert await store.balances("default", KEYS, now_ms()) == (Balance(),) * 4


async def test_a_counter_of_an_unknown_unit_is_not_guessed_at() -> None:
    store = MemoryStore()
    await reserved(store, keys=(counter_key("default", "agent/gone/day/usd", 0),))

    with pytest.raises(AdjustError, match="agent/gone/day/usd"):
        await adjusted(store, POLICIES, to(3))


async def test_a_call_of_an_agent_that_was_made_on_first_sight_is_adjusted_too() -> None:
    made = replace(POLICIES, agents={}, budgets=(), template=Template(POLICIES.agents["bot"], 5))
    store = MemoryStore()
    await reserved(store, particulars='{"agent":"bot"}')
    await store.expire("default", now_ms(), HORIZON_MS, 10)

    assert (await adjusted(store, made, to(3))).outcome is Outcome.LATE
    assert await spent(store) == [3 * DOLLAR, 500, 1, 0]
