"""An operator changes limits and pauses agents while the sidecar runs: the next call obeys."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from calls import chat, post
from servers import until
from sidecar import Sidecar, agent, key_of, running_sidecar

from extauthz.identity import hash_key, short_name

T = TypeVar("T")
PRICED = "priced-by-hand"
"""A model whose input is free: 1,000 tokens of output are $0.0125 exactly."""
ONE_CALL = "0.0125"


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents = (
        agent("paused", team="crew")
        | agent("member", team="team-of-one")
        | agent("raised", ONE_CALL)
        | agent("topped", budgets=[{"limit": ONE_CALL, "window": "minute"}])
        | agent("ends", ONE_CALL)
        | agent("lowered")
        | agent("stacked")
        | agent("rolling", budgets=[{"limit": ONE_CALL, "window": "rolling", "length": "1h"}])
        | agent("scoped")
    )
    of_key = {"hash": hash_key(key_of("scoped")), "budgets": [{"limit": "5", "window": "day"}]}
    agents["scoped"]["keys"] = [of_key]
    price = {"provider": "openai", "model": PRICED, "input": "0", "output": "12.5"}
    with running_sidecar(
        agents=agents,
        teams={"crew": {}, "team-of-one": {}},
        models={"gpt-4o*": {"budgets": [{"limit": "7", "window": "day"}]}},
        providers={"openai": {"budgets": [{"limit": "9", "window": "rolling", "length": "24h"}]}},
        prices=[price],
        defaults={"hold_wait": "200ms"},
    ) as running:
        running.sandbox.set_price("openai", PRICED, input="0", output="12.5")
        yield running


def run(sidecar: Sidecar, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as an operator would."""
    return subprocess.run(
        [sys.executable, "-m", "extauthz", *words, "-c", str(sidecar.config_path)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def extauthz(sidecar: Sidecar, *words: str) -> str:
    """What a command printed that was carried out."""
    done = run(sidecar, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def while_it_lasts(sidecar: Sidecar, words: tuple[str, ...], look: Callable[[], T]) -> T:
    """What is to be seen between a command and its end a few seconds later.

    A busy machine can take longer to start the command: then the end is set further away.
    """
    for seconds in (4, 20, 60):
        end = datetime.now(UTC) + timedelta(seconds=seconds)
        done = run(sidecar, *words, "--until", end.isoformat())
        seen = look()
        if datetime.now(UTC) < end:
            assert done.returncode == 0, done.stderr
            return seen
    raise AssertionError("a command and a call take more than a minute")


def call(sidecar: Sidecar, agent_name: str) -> tuple[int, str | None]:
    """A call that costs all that its agent may spend; its status and the reason of a refusal."""
    body = chat(model=PRICED, max_tokens=1000)
    answer = post(sidecar, agent_name, body, x_sandbox_output_tokens="1000")
    sidecar.until_settled()
    return answer.status, answer.reason


def limit_of(sidecar: Sidecar, name: str, scope: str = "agent") -> float:
    return sidecar.metric("extauthz_budget_limit_usd", scope=scope, name=name)


def test_a_pause_is_obeyed_by_the_next_call_and_so_is_its_end(sidecar: Sidecar) -> None:
    assert call(sidecar, "paused") == (200, None)

    extauthz(sidecar, "pause", "agent", "paused", "--until", "2099-01-01T00:00Z")

    refused = post(sidecar, "paused", chat())
    assert (refused.status, refused.reason) == (403, "agent_paused")
    assert refused.headers["x-should-retry"] == "false"
    assert "2099-01-01T00:00:00Z" in refused.error["message"]
    assert "agent paused is paused until 2099-01-01" in extauthz(sidecar, "budget", "list")
    extauthz(sidecar, "resume", "agent", "paused")
    assert call(sidecar, "paused") == (200, None)


def test_a_pause_of_a_team_stops_its_agents_and_no_others(sidecar: Sidecar) -> None:
    extauthz(sidecar, "pause", "team", "team-of-one")

    assert call(sidecar, "member") == (403, "agent_paused")
    assert call(sidecar, "paused") == (200, None)
    extauthz(sidecar, "resume", "team", "team-of-one")
    assert call(sidecar, "member") == (200, None)


def test_a_pause_ends_by_itself(sidecar: Sidecar) -> None:
    pause = ("pause", "agent", "member")
    paused = while_it_lasts(sidecar, pause, lambda: call(sidecar, "member"))

    assert paused == (403, "agent_paused")
    until(lambda: call(sidecar, "member") == (200, None))


def test_a_raised_limit_lets_the_next_call_through_and_is_shown_everywhere(
    sidecar: Sidecar,
) -> None:
    assert call(sidecar, "raised") == (200, None)
    assert call(sidecar, "raised") == (429, "budget_exhausted")

    said = extauthz(sidecar, "budget", "set", "agent/raised/day/usd", "--limit", "0.025")

    assert "in force at the next call" in said
    body = chat(model=PRICED, max_tokens=1000)
    answer = post(sidecar, "raised", body, x_sandbox_output_tokens="1000")
    assert (answer.status, answer.headers["x-budget-limit-usd"]) == (200, "0.025")
    sidecar.until_settled()
    assert limit_of(sidecar, "raised") == 0.025
    assert call(sidecar, "raised") == (429, "budget_exhausted")
    extauthz(sidecar, "budget", "unset", "agent/raised/day/usd")
    assert limit_of(sidecar, "raised") == 0.0125


def test_a_limit_that_is_set_ends_top_ups_and_gives_way_to_the_one_before_it(
    sidecar: Sidecar,
) -> None:
    budget = "agent/stacked/day/usd"
    extauthz(sidecar, "budget", "set", budget, "--limit", "3")
    extauthz(sidecar, "budget", "top-up", budget, "2")
    assert limit_of(sidecar, "stacked") == 5

    lowered = ("budget", "set", budget, "--limit", "0")
    said = extauthz(sidecar, *lowered, "--until", "2099-01-01T00:00Z")
    assert "a top-up of 2.00 USD before it has ended by this" in said
    assert "and then: 3.00 USD, set before" in said
    assert limit_of(sidecar, "stacked") == 0
    assert ", then 3.00 USD" in extauthz(sidecar, "budget", "list")
    assert call(sidecar, "stacked")[0] != 200

    extauthz(sidecar, "budget", "unset", budget)
    extauthz(sidecar, "budget", "set", budget, "--limit", "3")
    assert while_it_lasts(sidecar, lowered, lambda: limit_of(sidecar, "stacked")) == 0
    until(lambda: limit_of(sidecar, "stacked") == 3)
    assert call(sidecar, "stacked") == (200, None)


def test_a_lowered_limit_stops_the_next_call(sidecar: Sidecar) -> None:
    assert call(sidecar, "lowered") == (200, None)

    extauthz(sidecar, "budget", "set", "agent/lowered/day/usd", "--limit", "0.0125")

    assert call(sidecar, "lowered") == (429, "budget_exhausted")


def test_a_raised_limit_ends_when_it_was_said_to(sidecar: Sidecar) -> None:
    assert call(sidecar, "ends") == (200, None)
    raised = ("budget", "set", "agent/ends/day/usd", "--limit", "1")
    seen = while_it_lasts(
        sidecar, raised, lambda: (limit_of(sidecar, "ends"), call(sidecar, "ends"))
    )

    assert seen == (1, (200, None))
    until(lambda: limit_of(sidecar, "ends") == 0.0125)

    assert call(sidecar, "ends") == (429, "budget_exhausted")


def test_a_top_up_holds_for_the_current_window_only_and_once(sidecar: Sidecar) -> None:
    until(lambda: datetime.now(UTC).second < 20)  # all of it within one minute
    top_up = ("budget", "top-up", "agent/topped/minute/usd", ONE_CALL, "--id", "ticket-7")
    assert "done, in force" in extauthz(sidecar, *top_up)
    assert "nothing was changed" in extauthz(sidecar, *top_up)
    assert [call(sidecar, "topped") for _ in range(3)] == [
        (200, None),
        (200, None),
        (429, "budget_exhausted"),
    ]

    until(lambda: limit_of(sidecar, "topped") == 0.0125, seconds=70)

    assert [call(sidecar, "topped") for _ in range(2)] == [(200, None), (429, "budget_exhausted")]


def test_a_rolling_window_is_enforced_and_shown(sidecar: Sidecar) -> None:
    assert call(sidecar, "rolling") == (200, None)
    assert call(sidecar, "rolling") == (429, "budget_exhausted")
    spent = sidecar.metric(
        "extauthz_budget_spent_usd", scope="agent", name="rolling", window="rolling-1h"
    )
    assert spent == 0.0125


def test_a_call_counts_for_its_key_its_provider_and_its_model(sidecar: Sidecar) -> None:
    key = short_name(hash_key(key_of("scoped")))
    scopes = {"key": key, "provider": "openai", "model": "gpt-4o*"}

    def spent() -> dict[str, float]:
        return {
            scope: sidecar.metric("extauthz_budget_spent_usd", scope=scope, name=name)
            for scope, name in scopes.items()
        }

    before = spent()
    assert post(sidecar, "scoped", chat()).status == 200
    sidecar.until_settled()

    cost = sidecar.metric("extauthz_budget_spent_usd", scope="agent", name="scoped")
    assert cost > 0
    assert {
        scope: round(now - before[scope], 9) for scope, now in spent().items()
    } == dict.fromkeys(scopes, round(cost, 9))
    assert limit_of(sidecar, key, "key") == 5
    assert key_of("scoped") not in sidecar.output


def test_what_is_wrong_with_a_command_is_said(sidecar: Sidecar) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(AssertionError) as caught:
            extauthz(sidecar, *words)
        return str(caught.value)

    assert "agent/raised/day/usd" in refused("budget", "set", "nothing", "--limit", "1")
    assert "not an amount" in refused("budget", "set", "agent/ends/day/usd", "--limit", "much")
    assert "there are: " in refused("pause", "agent", "nobody")
    assert "time zone" in refused("pause", "agent", "ends", "--until", "2099-01-01T00:00")
    assert "that is over" in refused("pause", "agent", "ends", "--until", "2009-01-01T00:00Z")
    assert "another change" in refused(
        "budget", "top-up", "agent/ends/day/usd", "1", "--id", "ticket-7"
    )
