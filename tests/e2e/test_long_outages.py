"""The store, the sink or both are away for longer than a lease, while agents call all the time.

Envoy goes on, so whatever it had let through before ends as usual, and everybody else is refused.
Of all those calls the ledger hears only when the parts are back, and by then each of their leases
has run out: one wrong step, and the outage is a charge for every one of them.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from load import Load, Streams
from outages import away, is_drained, surprises
from servers import until
from sidecar import Sidecar, agent, nanousd, running_sidecar

LEASE_SECONDS = 10
"""The shortest that there is."""
SECONDS, SECONDS_FULL = 12, 60
"""Of an outage: any of these is longer than a lease."""
SETTLED_SECONDS = 60
STREAMS = 8
"""These begin before the outage and end after it."""

OUTAGES = {
    "the store frozen": {"store": "frozen"},
    "the sink killed": {"service": "killed"},
    "both killed": {"store": "killed", "service": "killed"},
}
"""Each part and each way to be away."""
OUTAGES_FULL = {
    **OUTAGES,
    "the store killed": {"store": "killed"},
    "the sink frozen": {"service": "frozen"},
    "both frozen": {"store": "frozen", "service": "frozen"},
    "the store frozen, the sink killed": {"store": "frozen", "service": "killed"},
}
CASES = [
    *(pytest.param(parts, SECONDS, id=name) for name, parts in OUTAGES.items()),
    *(
        pytest.param(
            parts,
            SECONDS_FULL,
            id=f"{name}, for long",
            marks=[pytest.mark.full, pytest.mark.timeout(600)],
        )
        for name, parts in OUTAGES_FULL.items()
    ),
]
NAMES = [f"bot{number}" for number in range(len(CASES))]


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    budgets: list[dict[str, Any]] = [
        {"limit": "1000.00", "window": "total"},
        {"limit": 1_000_000, "unit": "requests", "window": "total"},
    ]
    agents: dict[str, Any] = {}
    for name in NAMES:
        agents |= agent(name, budgets=budgets, team=f"team-of-{name}")
    with running_sidecar(
        agents=agents,
        teams={f"team-of-{name}": {"budgets": budgets} for name in NAMES},
        orgs={"default": {"budgets": budgets}},
        defaults={"lease": f"{LEASE_SECONDS}s", "hold_wait": "100ms"},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def names() -> Iterator[str]:
    return iter(NAMES)


@pytest.mark.parametrize(("parts", "seconds"), CASES)
def test_after_an_outage_longer_than_a_lease_every_budget_is_the_bill(
    sidecar: Sidecar, names: Iterator[str], parts: dict[str, str], seconds: int
) -> None:
    name, before = next(names), surprises(sidecar)
    with Load(sidecar, name) as load, Streams(sidecar, name, seconds + 4, STREAMS) as streams:
        until(lambda: load.completed > 30, 60)
        with away(sidecar, parts):
            failed = load.failed
            over = time.monotonic() + seconds
            until(lambda: time.monotonic() > over, seconds + 60)
            assert load.failed > failed, "the outage met no call"
        completed = load.completed
        until(lambda: load.completed > completed + 30, 60)

    until(lambda: nothing_is_held(sidecar), SETTLED_SECONDS)
    bill = sidecar.sandbox.bill(after=2**62)["by_agent"][name]
    print(f"{load.completed} calls completed, {load.failed} failed; the bill: {bill}")
    assert streams.ended == STREAMS, "a stream was cut"
    assert bill["calls"] == bill["completed_calls"], "a call was cut"
    assert bill["calls"] == load.completed + streams.ended
    spent = {"usd": int(bill["total_nanousd"]), "requests": bill["calls"]}
    assert spent_of(sidecar, "agent", name) == spent
    assert spent_of(sidecar, "team", f"team-of-{name}") == spent
    assert not [one for one in surprises(sidecar) if one not in before]
    until(lambda: is_drained(sidecar))


def test_after_all_of_them_the_organisation_has_spent_the_whole_bill(sidecar: Sidecar) -> None:
    bill = sidecar.sandbox.bill(after=2**62)
    calls = sum(one["calls"] for one in bill["by_agent"].values())

    assert spent_of(sidecar, "org", "default") == {
        "usd": int(bill["total_nanousd"]),
        "requests": calls,
    }


def spent_of(sidecar: Sidecar, scope: str, name: str) -> dict[str, int]:
    """What each budget of an agent, a team or an org has spent, by its unit."""
    return {
        budget["unit"]: (nanousd if budget["unit"] == "usd" else int)(budget["spent"])
        for budget in sidecar.standing()["budgets"]
        if (budget["scope"], budget["name"]) == (scope, name)
    }


def nothing_is_held(sidecar: Sidecar) -> bool:
    return all(nanousd(budget["held"]) == 0 for budget in sidecar.standing()["budgets"])
