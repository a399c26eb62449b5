"""Whatever the gRPC access log loses is found in the file: all that was completed is settled at its
bill, and no lease has to charge for it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from calls import chat, post
from load import MESSAGES, Load
from servers import until
from sidecar import Sidecar, agent, running_sidecar

AGENTS = ("calm", "killed", "frozen", "sinkless", "storeless", "rotated", "by-hand", "adjusted")
RECONCILED_SECONDS = 40


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    """Leases are as long as they are in production: none runs out in these tests."""
    agents: dict[str, Any] = {}
    for name in AGENTS:
        agents |= agent(name, "1000.00")
    with running_sidecar(agents=agents, defaults={"hold_wait": "100ms"}) as running:
        yield running


def killed(sidecar: Sidecar, *names: str) -> None:
    """Kill children and wait until the sidecar works again."""
    old = {name: sidecar.pid_of(name) for name in names}
    for name in names:
        sidecar.kill(name)

    def back() -> bool:
        try:
            return all(sidecar.pid_of(name) != old[name] for name in names) and works(sidecar)
        except OSError:
            return False

    until(back, 40)


def works(sidecar: Sidecar) -> bool:
    try:
        sidecar.balance("calm")
        return post(sidecar, "calm", chat()).status == 200
    except OSError:
        return False


def assert_spent_is_the_bill(sidecar: Sidecar, name: str) -> None:
    until(lambda: sidecar.balance(name)[1] == 0, RECONCILED_SECONDS)
    assert sidecar.balance(name)[0] == sidecar.sandbox.total_nanousd(name) > 0
    assert not outcomes(sidecar, "expired")
    assert not outcomes(sidecar, "conflict")


def outcomes(sidecar: Sidecar, outcome: str) -> list[dict[str, Any]]:
    return [line for line in sidecar.log_lines("settlement") if line["outcome"] == outcome]


def more_calls(load: Load, count: int = 30) -> None:
    done = load.completed
    until(lambda: load.completed > done + count, 60)


def command(sidecar: Sidecar, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "extauthz", *words, "-c", str(sidecar.config_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_service_killed_again_and_again_under_load_settles_every_call_at_its_bill(
    sidecar: Sidecar,
) -> None:
    with Load(sidecar, "killed") as load:
        for _ in range(5):
            more_calls(load)
            killed(sidecar, "service")
        more_calls(load)

    assert_spent_is_the_bill(sidecar, "killed")
    assert load.failed > 0, "no kill met a call"
    print(f"{load.completed} calls completed, {load.failed} failed")


def test_entries_handed_to_a_frozen_service_that_is_then_killed_are_found_in_the_file(
    sidecar: Sidecar,
) -> None:
    with sidecar.openai("frozen").chat.completions.create(
        model="gpt-4o-mini",
        messages=MESSAGES,
        max_tokens=50,
        user="frozen",
        stream=True,
        extra_headers={"x-sandbox-chunks": "3", "x-sandbox-chunk-delay-ms": "200"},
    ) as answer:
        next(iter(answer))
        sidecar.kill("service", signal.SIGSTOP)
        for _ in answer:
            pass
    until(lambda: b'"frozen' in (sidecar.data_dir / "access_log.jsonl").read_bytes())
    before = sidecar.sandbox.total_nanousd("frozen")
    killed(sidecar, "service")

    assert_spent_is_the_bill(sidecar, "frozen")
    assert sidecar.sandbox.total_nanousd("frozen") == before
    until(lambda: sidecar.metric("extauthz_reconciled_total") > 0, 20)
