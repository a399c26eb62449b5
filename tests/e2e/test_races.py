"""Many calls at one moment: the limit holds, and no room is lost that could have been used."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest
from at_once import Crowd
from calls import HELLO
from servers import until
from sidecar import Sidecar, agent, key_of, running_sidecar

MODEL = "output-only"
"""Input is free, and 1,000 tokens of output are $0.0125: four calls are $0.05 exactly."""
LIMIT, LIMIT_NANOUSD = "0.05", 50_000_000
CAP = 1000
ROUNDS = 3
ROUNDS_FULL = {20: 100, 200: 25}
"""By how many calls there are in each."""
PRICED = {"input": "0", "output": "12.5"}
FIELDS: Any = {"max_tokens": CAP, "extra_headers": {"x-sandbox-output-tokens": str(CAP)}}


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for number in range(ROUNDS + sum(ROUNDS_FULL.values())):
        agents |= agent(f"racer{number}", LIMIT)
    for name in ("openai", "anthropic", "uncertain", "streaming"):
        agents |= agent(name, LIMIT)
    agents |= agent("one", "1.00", team="crew") | agent("two", "1.00", team="crew")
    agents |= agent("alone", max_in_flight=1)
    prices = [{"provider": name, "model": MODEL, **PRICED} for name in ("openai", "anthropic")]
    teams = {"crew": {"budgets": [{"limit": LIMIT, "window": "day"}]}}
    # Room that is held is waited for as long as it takes, so a busy machine refuses nobody.
    with running_sidecar(
        agents=agents, prices=prices, teams=teams, defaults={"hold_wait": "10s"}
    ) as running:
        for name in ("openai", "anthropic"):
            running.sandbox.set_price(name, MODEL, **PRICED)
        yield running


@pytest.fixture(scope="module")
def crowd(sidecar: Sidecar) -> Iterator[Crowd]:
    with Crowd(sidecar.egress) as processes:
        yield processes


def assert_a_race_is_fair(sidecar: Sidecar, crowd: Crowd, name: str, calls: int) -> None:
    before = sidecar.sandbox.total_nanousd()

    answers = crowd.call(key_of(name), MODEL, calls, **FIELDS)

    assert Counter(status for status, _ in answers) == {200: 4, 429: calls - 4}
    assert {reason for status, reason in answers if status == 429} <= {
        "budget_exhausted",
        "budget_held",
    }
    until(lambda: sidecar.balance(name) == (LIMIT_NANOUSD, 0))
    assert sidecar.sandbox.total_nanousd() - before == LIMIT_NANOUSD
    assert sidecar.metric("extauthz_overshoot_usd_total") == 0


@pytest.mark.parametrize("number", range(ROUNDS))
def test_of_twenty_calls_at_once_as_many_are_admitted_as_the_limit_pays_for(
    sidecar: Sidecar, crowd: Crowd, number: int
) -> None:
    assert_a_race_is_fair(sidecar, crowd, f"racer{number}", 20)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("calls", ROUNDS_FULL)
def test_so_are_they_in_many_rounds_and_of_many_more(
    sidecar: Sidecar, crowd: Crowd, calls: int
) -> None:
    first = ROUNDS + (ROUNDS_FULL[20] if calls > 20 else 0)
    for number in range(first, first + ROUNDS_FULL[calls]):
        assert_a_race_is_fair(sidecar, crowd, f"racer{number}", calls)


def test_two_agents_at_once_pass_their_teams_limit_no_more_than_one(sidecar: Sidecar) -> None:
    def until_refused(name: str) -> int:
        client, admitted = sidecar.openai(name), 0
        while True:
            try:
                client.chat.completions.create(model=MODEL, messages=HELLO, **FIELDS)
            except openai.RateLimitError:
                return admitted
            admitted += 1

    with ThreadPoolExecutor(2) as pool:
        admitted = list(pool.map(until_refused, ["one", "two"]))

    assert sum(admitted) == 4
    sidecar.until_settled()
    assert sidecar.balance("one")[0] + sidecar.balance("two")[0] == LIMIT_NANOUSD


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_calls_one_after_the_other_reach_the_limit_to_the_nanodollar(
    sidecar: Sidecar, provider: str
) -> None:
    """Each reserves twice what it costs, so near the limit it needs what its last one has left."""
    create: Any = (
        sidecar.openai("openai").chat.completions.create
        if provider == "openai"
        else sidecar.anthropic("anthropic").messages.create
    )
    sdk: Any = openai if provider == "openai" else anthropic
    twice = FIELDS | {"max_tokens": 2 * CAP}

    for _ in range(3):
        create(model=MODEL, messages=HELLO, **twice)
    with pytest.raises(sdk.RateLimitError) as caught:
        create(model=MODEL, messages=HELLO, **twice)
    create(model=MODEL, messages=HELLO, **FIELDS)

    assert caught.value.response.headers["x-budget-reason"] in ("budget_exhausted", "budget_held")
    until(lambda: sidecar.balance(provider) == (LIMIT_NANOUSD, 0))
    with pytest.raises(sdk.RateLimitError) as caught:
        create(model=MODEL, messages=HELLO, max_tokens=1)
    assert caught.value.response.headers["x-budget-reason"] == "budget_exhausted"


def test_an_agent_with_one_call_at_a_time_may_call_back_to_back(sidecar: Sidecar) -> None:
    client = sidecar.openai("alone")

    for _ in range(5):
        client.chat.completions.create(model=MODEL, messages=HELLO, **FIELDS)

    until(lambda: sidecar.balance("alone") == (5 * LIMIT_NANOUSD // 4, 0))


def test_a_call_that_costs_less_than_it_held_leaves_the_rest_to_the_next(sidecar: Sidecar) -> None:
    """Held in full each time, spent a hundredth: far more calls than the holds alone would let."""
    client = sidecar.openai("uncertain")
    headers = {"x-sandbox-output-tokens": "10"}

    for _ in range(30):
        client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=3 * CAP, extra_headers=headers
        )

    until(lambda: sidecar.balance("uncertain") == (30 * 125_000, 0))


def test_streams_one_after_the_other_reach_the_limit_as_well(sidecar: Sidecar) -> None:
    client = sidecar.openai("streaming")
    fields = FIELDS | {"model": MODEL, "messages": HELLO, "stream": True}

    for _ in range(4):
        assert list(client.chat.completions.create(**fields))
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**fields)

    until(lambda: sidecar.balance("streaming") == (LIMIT_NANOUSD, 0))
