"""The books of a sidecar under load and kills: they prove the counters, and outlive the store."""

import json
import random
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from calls import chat, post
from load import Load
from outages import answers
from servers import Server, until
from sidecar import Sidecar, agent, running_sidecar

from extauthz.config import load
from extauthz.ledger import Row
from extauthz.server.archives import archives_of

AGENTS = ("a", "b", "c", "flushed", "behind", "tampered")


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for name in AGENTS:
        agents |= agent(name, "1000.00")
    books = {"audit_every": "2s"}
    with running_sidecar(agents=agents, defaults={"hold_wait": "100ms"}, books=books) as running:
        yield running


def extauthz(sidecar: Sidecar, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "extauthz", *words, "-c", str(sidecar.config_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=sidecar.env,
    )


def store_of(sidecar: Sidecar) -> "redis.Redis":
    path = sidecar.data_dir / "run" / "store.sock"
    return redis.Redis(unix_socket_path=str(path), decode_responses=True)


def books(sidecar: Sidecar) -> list[Row]:
    """All rows, archived or not."""
    archived = list(archives_of(load(sidecar.config_path))("default").rows())
    last_seq = archived[-1].seq if archived else 0
    return archived + [row for row in sidecar.rows() if row.seq > last_seq]


def spent_by_rows(sidecar: Sidecar, name: str) -> int:
    def of_agent(row: Row) -> bool:
        return bool(row.particulars) and json.loads(row.particulars).get("agent") == name

    return sum(row.change_nanousd for row in books(sidecar) if of_agent(row))


def readiness(sidecar: Sidecar) -> str:
    """Why it is not ready; "" if it is."""
    try:
        with urllib.request.urlopen(f"{sidecar.metrics_url}/readyz", timeout=30):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode()


def until_nothing_is_held(sidecar: Sidecar, *names: str) -> None:
    until(lambda: answers(sidecar) and all(sidecar.balance(n)[1] == 0 for n in names), 120)


def test_after_kills_of_service_and_store_the_rows_are_the_providers_bill(
    sidecar: Sidecar,
) -> None:
    dice = random.Random(11)
    names = ("a", "b", "c")
    loads = [Load(sidecar, name, workers=2) for name in names]
    for one in loads:
        one.__enter__()
    try:
        for part in ("service", "store", "service", "store", "store", "service"):
            done = sum(one.completed for one in loads)
            more = dice.randrange(5, 25)
            until(lambda: sum(one.completed for one in loads) > done + more, 120)  # noqa: B023
            sidecar.kill(part)
            until(lambda: answers(sidecar), 120)
    finally:
        for one in loads:
            one.stop()
    until_nothing_is_held(sidecar, *names)

    for name in names:
        bill = sidecar.sandbox.total_nanousd(name)
        until(lambda: spent_by_rows(sidecar, name) == bill, 60)  # noqa: B023
        assert sidecar.balance(name)[0] == bill > 0
    audit = extauthz(sidecar, "audit")
    assert (audit.returncode, audit.stderr) == (0, ""), audit.stdout
    assert "all agree" in audit.stdout


def test_an_audit_beside_running_calls_finds_no_drift(sidecar: Sidecar) -> None:
    with Load(sidecar, "a") as one:
        until(lambda: one.completed > 10, 60)
        for _ in range(3):
            audit = extauthz(sidecar, "audit", "--json")
            assert audit.returncode == 0, audit.stdout + audit.stderr
    (told,) = json.loads(audit.stdout)
    assert told["clean"] is True
    assert told["counters"] > 0


def test_a_counter_that_was_tampered_with_is_told_in_usd_and_repaired(sidecar: Sidecar) -> None:
    assert post(sidecar, "tampered", chat()).status == 200
    until_nothing_is_held(sidecar, "tampered")
    before = sidecar.balance("tampered")
    with store_of(sidecar) as store:
        (key,) = store.scan_iter("xa1:{default}:c:agent/tampered/day/usd:*")
        store.hincrby(key, "spent", -1_000_000)

    found = extauthz(sidecar, "audit")
    until(lambda: sidecar.metric("extauthz_ledger_drift_usd", org="default") == 0.001, 60)
    repaired = extauthz(sidecar, "audit", "--repair", "--reason", "somebody had been at it")
    after = extauthz(sidecar, "audit")

    assert found.returncode == 1
    assert re.search(r"agent/tampered/day/usd:\d+: spent shows .*\(-0\.001 USD\)", found.stdout)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert "set right" in repaired.stdout
    assert after.returncode == 0
    assert sidecar.balance("tampered") == before
    until(lambda: sidecar.metric("extauthz_ledger_drift_usd", org="default") == 0, 60)


def test_after_a_flush_nothing_is_let_through_until_the_ledger_is_rebuilt(
    sidecar: Sidecar,
) -> None:
    for _ in range(3):
        assert post(sidecar, "flushed", chat(user="flushed")).status == 200
    until_nothing_is_held(sidecar, *AGENTS)
    archive = archives_of(load(sidecar.config_path))("default")
    until(lambda: archive.last_seq == books(sidecar)[-1].seq, 30)
    before = {name: sidecar.balance(name) for name in AGENTS}
    with store_of(sidecar) as store:
        store.flushall()

    refused = post(sidecar, "flushed", chat(user="flushed"))
    sidecar.kill("service")  # a new one does not begin new books either
    until(lambda: post(sidecar, "flushed", chat(user="flushed")).reason == "store_unavailable", 60)
    until(lambda: readiness(sidecar).startswith("books:"), 60)
    listed = extauthz(sidecar, "budget", "set", "agent/flushed/day/usd", "--limit", "5")
    rebuilt = extauthz(sidecar, "ledger", "rebuild", "--reason", "flushed by mistake")

    assert (refused.status, refused.reason) == (503, "store_unavailable")
    assert "lost its books" in refused.error["message"]
    assert listed.returncode == 1
    assert "ledger rebuild" in listed.stderr
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert {name: sidecar.balance(name) for name in AGENTS} == before
    until(lambda: post(sidecar, "flushed", chat(user="flushed")).status == 200, 60)
    until_nothing_is_held(sidecar, "flushed")
    assert sidecar.balance("flushed")[0] == sidecar.sandbox.total_nanousd("flushed")
    until(lambda: extauthz(sidecar, "audit").returncode == 0, 60)
    until(lambda: not readiness(sidecar), 60)
    # And the archive goes on.
    until(lambda: archive.last_seq == books(sidecar)[-1].seq, 30)


def test_a_service_that_has_no_archive_does_not_begin_new_books_either() -> None:
    """Two sidecars share a store; after it was flushed, the one without the archive restarts."""
    agents = agent("shared", "1000.00")
    with (
        Server() as server,
        running_sidecar(agents=agents, store={"url": server.url}) as archiving,
        running_sidecar(agents=agents, store={"url": server.url}) as other,
    ):
        for sidecar in (archiving, other):
            assert post(sidecar, "shared", chat()).status == 200
        until_nothing_is_held(archiving, "shared")
        archive = archives_of(load(archiving.config_path))("default")
        until(lambda: archive.last_seq == 3, 60)  # opened, and a call through each
        until((other.data_dir / "books_seen" / "default").exists, 30)
        spent = archiving.balance("shared")[0]
        with server.client() as store:
            store.flushall()

        other.kill("service")
        until(lambda: post(other, "shared", chat()).reason == "store_unavailable", 60)
        nothing = extauthz(other, "ledger", "rebuild", "--reason", "flushed")
        rebuilt = extauthz(archiving, "ledger", "rebuild", "--reason", "flushed")

        assert nothing.returncode == 1
        assert "run it where the archive is" in nothing.stderr
        assert rebuilt.returncode == 0, rebuilt.stderr
        until(lambda: post(other, "shared", chat()).status == 200, 60)
        assert other.balance("shared")[0] >= spent > 0
