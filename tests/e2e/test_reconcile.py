"""Whatever the gRPC access log loses is found in the file: all that was completed is settled at its
bill, and no lease has to charge for it."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from calls import chat, post
from load import MESSAGES, Load
from servers import until
from sidecar import Sidecar, agent, running_sidecar

from extauthz.server.data_dir import DataDir
from extauthz.server.envoy import EnvoyAdmin
from extauthz.server.rotation import LogRotation

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
    end_of_call_while_the_service_is_frozen(sidecar, "frozen")
    assert sidecar_holds(sidecar), "the entry was settled although the service is frozen"
    killed(sidecar, "service")

    assert_spent_is_the_bill(sidecar, "frozen")
    until(lambda: sidecar.metric("extauthz_reconciled_total") > 0, 20)


def test_what_a_service_missed_while_it_was_away_is_settled_when_it_is_back(
    sidecar: Sidecar,
) -> None:
    with Load(sidecar, "sinkless") as load:
        more_calls(load)
        for _ in range(2):
            sidecar.kill("service", signal.SIGSTOP)
            failed = load.failed
            until(lambda failed=failed: load.failed > failed, 60)
            sidecar.kill("service", signal.SIGCONT)
            more_calls(load)

    assert_spent_is_the_bill(sidecar, "sinkless")


def test_a_store_that_is_away_while_the_service_restarts_turns_into_no_charge(
    sidecar: Sidecar,
) -> None:
    service = sidecar.pid_of("service")
    with Load(sidecar, "storeless") as load:
        more_calls(load)
        sidecar.kill("store", signal.SIGSTOP)
        try:
            failed = load.failed
            until(lambda: load.failed > failed + 5, 60)
            sidecar.kill("service")
            until(lambda: pid_after(sidecar, "service", service), 30)
        finally:
            sidecar.kill("store", signal.SIGCONT)
        until(lambda: works(sidecar), 60)
        more_calls(load)

    assert_spent_is_the_bill(sidecar, "storeless")


def test_a_log_that_is_rotated_under_load_loses_nothing_and_does_not_grow(
    sidecar: Sidecar,
) -> None:
    data_dir = DataDir(sidecar.data_dir)
    rotation = LogRotation(data_dir, EnvoyAdmin(data_dir.envoy_admin_socket), size_max=20_000)
    seen: set[str] = set()

    def rotated() -> list[str]:
        found = sorted(path.name for path in sidecar.data_dir.glob("access_log.jsonl.*"))
        seen.update(found)
        return found

    with Load(sidecar, "rotated") as load:
        for turn in range(8):
            more_calls(load, 10)
            asyncio.run(rotation.look())
            rotated()
            if turn in (2, 5):
                killed(sidecar, "service")

    assert_spent_is_the_bill(sidecar, "rotated")
    assert len(seen) >= 4

    def are_deleted() -> bool:
        asyncio.run(rotation.look())
        return len(rotated()) <= 2

    until(are_deleted, 60)
    assert (sidecar.data_dir / "access_log.jsonl").exists()


def test_reconciling_by_hand_settles_once_and_a_second_time_nothing(sidecar: Sidecar) -> None:
    end_of_call_while_the_service_is_frozen(sidecar, "by-hand")
    try:
        first = command(sidecar, "reconcile")
        second = command(sidecar, "reconcile", "--log", str(sidecar.data_dir / "access_log.jsonl"))
    finally:
        sidecar.kill("service", signal.SIGCONT)

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert counted(first)["settled now"] >= 1
    assert counted(second)["settled now"] == 0
    for each in (first, second):
        assert counted(each)["already known"] > 0
        assert counted(each)["unreadable lines"] == 0
    assert_spent_is_the_bill(sidecar, "by-hand")


def test_reconciling_a_log_that_is_not_there_says_so(sidecar: Sidecar) -> None:
    answer = command(sidecar, "reconcile", "--log", str(sidecar.dir / "none"))

    assert answer.returncode == 1
    assert "there is no such log" in answer.stderr


def test_an_operator_corrects_what_a_lease_has_charged(sidecar: Sidecar) -> None:
    before = sidecar.metric("extauthz_expired_unconfirmed_total")
    with stream(sidecar, "adjusted", 200) as answer:
        next(iter(answer))
        [decision] = [one for one in sidecar.log_lines("decision") if one["agent"] == "adjusted"]
        id_ = decision["reservation_id"]
        killed(sidecar, "envoy")  # with what it had not written yet: nobody will ever tell
    path = sidecar.data_dir / "run" / "store.sock"
    with redis.Redis(unix_socket_path=str(path)) as store:
        store.zadd("xa1:{default}:leases", {id_: time.time() * 1000 - 1})
    until(lambda: sidecar.metric("extauthz_expired_unconfirmed_total") == before + 1, 20)
    assert sidecar.balance("adjusted")[0] > 12_300

    def adjust(which: str, cost: str) -> "subprocess.CompletedProcess[str]":
        return command(sidecar, "ledger", "adjust", which, "--cost", cost, "--reason", "invoice 7")

    unknown = adjust("01a208c8-4cba-7ba8-9a52-0b4e2eb74120", "1")
    corrected = adjust(id_, "0.0000123")
    again = adjust(id_, "0.0000123")
    contradiction = adjust(id_, "0.5")

    assert unknown.returncode == 1
    assert "no reservation of this id is known" in unknown.stderr
    assert corrected.returncode == 0, corrected.stderr
    assert "had been charged when its lease ran out, and is corrected now" in corrected.stdout
    assert again.returncode == 0
    assert "nothing was changed" in again.stdout
    assert contradiction.returncode == 1
    assert "is final" in contradiction.stderr
    assert sidecar.balance("adjusted") == (12_300, 0)
    said = [row for row in sidecar.rows() if row.id == id_]
    assert [row.outcome for row in said] == ["expired_unconfirmed", "late"]
    assert said[1].cost_nanousd == 12_300
    assert json.loads(said[1].particulars)["adjusted"] == "invoice 7"


def stream(sidecar: Sidecar, name: str, chunks: int) -> Any:
    return sidecar.openai(name).chat.completions.create(
        model="gpt-4o-mini",
        messages=MESSAGES,
        max_tokens=50,
        user=name,
        stream=True,
        extra_headers={"x-sandbox-chunks": str(chunks), "x-sandbox-chunk-delay-ms": "200"},
    )


def end_of_call_while_the_service_is_frozen(sidecar: Sidecar, name: str) -> None:
    with stream(sidecar, name, 3) as answer:
        next(iter(answer))
        sidecar.kill("service", signal.SIGSTOP)
        for _ in answer:
            pass
    log, agent_name = sidecar.data_dir / "access_log.jsonl", f'agent\\":\\"{name}\\"'
    until(lambda: agent_name in log.read_text())


def sidecar_holds(sidecar: Sidecar) -> bool:
    path = sidecar.data_dir / "run" / "store.sock"
    with redis.Redis(unix_socket_path=str(path)) as store:
        return bool(store.zcard("xa1:{default}:leases"))


def pid_after(sidecar: Sidecar, name: str, old: int) -> bool:
    try:
        return sidecar.pid_of(name) != old
    except OSError:
        return False


def counted(answer: "subprocess.CompletedProcess[str]") -> dict[str, int]:
    return {
        what: int(n)
        for what, n in re.findall(r"^(.+?)[:,][^:]*?(\d+)$", answer.stdout, re.MULTILINE)
    }
