"""The books as commands read them: each ending has its row, and the sums are the bill."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from calls import CLAUDE, HELLO, MESSAGES, chat, message, post
from servers import until
from sidecar import Sidecar, agent, free_port, nanousd, running_sidecar

CLOSED_CALLS = ("cached", "written", "refused", "dead")
CUT_CALLS = ("corrected", "unknown")


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    """With calls of each ending behind it."""
    agents: dict[str, Any] = {}
    for name in (*CLOSED_CALLS, *CUT_CALLS, "followed"):
        agents |= agent(name, "5.00", team="crew" if name in CLOSED_CALLS else "others")
    dead = {"api": "openai", "upstream": f"http://127.0.0.1:{free_port()}"}
    with running_sidecar(
        agents=agents,
        teams={"crew": {}, "others": {}},
        providers={"dead": dead},
        defaults={"timezone": "Europe/Berlin"},
    ) as running:
        make_calls(running)
        yield running


def make_calls(sidecar: Sidecar) -> None:
    script = {"x_sandbox_input_tokens": "900", "x_sandbox_cached_tokens": "333"}
    assert post(sidecar, "cached", chat(user="cached"), **script).status == 200
    written = {"x_sandbox_cache_write_5m_tokens": "41", "x_sandbox_cache_write_1h_tokens": "59"}
    body = message(metadata={"user_id": "written"}, stream=True)
    assert post(sidecar, "written", body, path=MESSAGES, **written).status == 200
    assert post(sidecar, "refused", chat(user="refused"), x_sandbox_status="429").status == 429
    assert post(sidecar, "dead", chat(), path="/dead/v1/chat/completions").status == 503
    sidecar.until_settled()
    cut_off(sidecar)
    adjust(sidecar, "corrected")
    extauthz(sidecar, "budget", "set", "agent/followed/day/usd", "--limit", "4")


def cut_off(sidecar: Sidecar) -> None:
    """Calls of which nobody ever hears again: their leases are charged."""
    streams = [
        sidecar.anthropic(name).messages.create(
            model=CLAUDE,
            messages=HELLO,
            max_tokens=50,
            stream=True,
            metadata={"user_id": name},
            extra_headers={"x-sandbox-chunks": "200", "x-sandbox-chunk-delay-ms": "200"},
        )
        for name in CUT_CALLS
    ]
    for stream in streams:
        next(iter(stream))
    sidecar.kill("envoy")
    for stream in streams:
        stream.close()
    leases = {reservation(sidecar, name): time.time() * 1000 - 1 for name in CUT_CALLS}
    with redis.Redis(unix_socket_path=str(sidecar.data_dir / "run" / "store.sock")) as store:
        store.zadd("xa1:{default}:leases", leases)
    sidecar.until_settled()


def reservation(sidecar: Sidecar, name: str) -> str:
    lines = sidecar.log_lines("decision")
    return next(line["reservation_id"] for line in lines if line["agent"] == name)


def adjust(sidecar: Sidecar, name: str) -> None:
    """Correct a call to what the provider has billed."""
    bill = sidecar.sandbox.total_nanousd(name)
    assert bill > 0
    cost = f"{bill // 10**9}.{bill % 10**9:09d}"
    id_ = reservation(sidecar, name)
    extauthz(sidecar, "ledger", "adjust", id_, "--cost", cost, "--reason", "=invoice 7")


def command(sidecar: Sidecar, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "extauthz", *words, "-c", str(sidecar.config_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def extauthz(sidecar: Sidecar, *words: str) -> str:
    done = command(sidecar, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(sidecar: Sidecar, *words: str) -> list[dict[str, Any]]:
    text = extauthz(sidecar, "ledger", "export", "--format", "jsonl", *words)
    return [json.loads(line) for line in text.splitlines()]


def outcomes(sidecar: Sidecar, name: str) -> list[str]:
    return [row["outcome"] for row in rows(sidecar, "--agent", name)]


def test_every_ending_is_a_row_and_the_sums_are_the_providers_bill_to_the_nano_usd(
    sidecar: Sidecar,
) -> None:
    assert outcomes(sidecar, "cached") == outcomes(sidecar, "written") == ["settled"]
    assert outcomes(sidecar, "refused") == ["released"]
    assert outcomes(sidecar, "dead") == ["abandoned"]
    assert outcomes(sidecar, "corrected") == ["expired_unconfirmed", "late"]
    assert outcomes(sidecar, "unknown") == ["expired_unconfirmed"]
    assert [row["note"] for row in rows(sidecar, "--outcome", "override")] == [
        "set agent/followed/day/usd 4000000000"
    ]

    before = spend(sidecar, "--by", "agent")
    groups = {group["agent"]: group for group in before["groups"]}
    for name in ("cached", "written", "corrected"):
        assert nanousd(groups[name]["usd"]) == sidecar.sandbox.total_nanousd(name) > 0
        assert groups[name]["calls"] == 1
    assert groups.keys() == {"cached", "written", "corrected", "unknown"}
    unknown, total = groups["unknown"], before["total"]
    assert unknown["usd"] == unknown["unconfirmed_usd"] == total["unconfirmed_usd"]
    assert (total["calls"], total["unconfirmed_calls"]) == (4, 1)
    assert nanousd(unknown["usd"]) > sidecar.sandbox.total_nanousd("unknown")

    adjust(sidecar, "unknown")

    for dimension in ("agent", "model", "day"):
        total = spend(sidecar, "--by", dimension, "--since", "24h")["total"]
        assert nanousd(total["usd"]) == sidecar.sandbox.total_nanousd(), dimension
        assert (total["calls"], total["unconfirmed_calls"]) == (4, 0)
    ours = spend(sidecar, "--by", "day", "--team", "crew", "--provider", "openai")["total"]
    assert nanousd(ours["usd"]) == sidecar.sandbox.total_nanousd("cached")
    assert spend(sidecar, "--by", "day", "--until", "24h")["groups"] == []


def spend(sidecar: Sidecar, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(extauthz(sidecar, "spend", "--json", *words))
    assert found["timezone"] == "Europe/Berlin"
    summed = sum(nanousd(group["usd"]) for group in found["groups"])
    assert summed == nanousd(found["total"]["usd"])
    return found


def test_a_table_for_people_has_no_colour_in_a_pipe(sidecar: Sidecar) -> None:
    text = extauthz(sidecar, "spend", "--by", "agent")
    assert "\x1b" not in text
    lines = text.splitlines()
    usd = [line.index(".") for line in lines if line.startswith(("cached", "written", "total"))]
    assert len(usd) == 3
    assert len(set(usd)) == 1


def test_a_table_of_rows_is_the_same_books(sidecar: Sidecar) -> None:
    path = sidecar.dir / "books.csv"
    assert extauthz(sidecar, "ledger", "export", "--format", "csv", "--output", str(path)) == ""
    table = list(csv.DictReader(io.StringIO(path.read_text())))
    lines = rows(sidecar)
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    for cells, line in zip(table, lines, strict=True):
        for name, cell in cells.items():
            assert cell.lstrip("'") == ("" if line[name] is None else str(line[name]))
    assert "'=invoice 7" in {cells["note"] for cells in table}


def test_a_call_is_explained_by_the_rates_in_its_own_row(sidecar: Sidecar) -> None:
    cost = sidecar.sandbox.total_nanousd("cached")
    text = extauthz(sidecar, "ledger", "explain", reservation(sidecar, "cached"))
    assert "cache_read_tokens" in text
    assert "x 0.075" in text
    assert f"0.{cost:09d}".rstrip("0") in text
    assert "This equals what was charged." in text
    assert "agent/cached/day/usd from " in text

    [decision] = [row["decision_id"] for row in rows(sidecar, "--agent", "corrected")][:1]
    text = extauthz(sidecar, "ledger", "explain", decision)
    assert "Nothing told how the call ended before its lease ran out" in text
    assert "An operator has said what it did cost." in text
    assert "=invoice 7" in text
    assert "spent -" in text


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (("ledger", "explain", "nobody"), "the books of the org 'default' say nothing", 1),
        (
            ("ledger", "export", "--format", "csv", "--output", "/no/such/place"),
            "--output /no/such/place: cannot be written",
            1,
        ),
    ],
)
def test_what_cannot_be_done_is_said_with_a_remedy(
    sidecar: Sidecar, words: tuple[str, ...], said: str, status: int
) -> None:
    done = command(sidecar, *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_ends_the_command_quietly(sidecar: Sidecar) -> None:
    for words in ("ledger tail", "ledger export --format csv", "spend --by agent"):
        piped = f"'{sys.executable}' -m extauthz {words} -c '{sidecar.config_path}' | true"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", piped], capture_output=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b""), words


# A shell without job control starts what it puts in the background with SIGINT ignored, for good.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("extauthz", run_name="__main__")
"""


def test_following_shows_each_row_once_over_a_restart_of_the_store(sidecar: Sidecar) -> None:
    words = ["ledger", "tail", "-n", "0", "-f", "--json", "--agent", "followed"]
    log = sidecar.dir / "followed.jsonl"
    errors = sidecar.dir / "followed.err"
    with log.open("w") as out, errors.open("w") as err:
        follower = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, *words, "-c", str(sidecar.config_path)],
            stdout=out,
            stderr=err,
            env=os.environ,
        )

    def seen() -> list[int]:
        return [json.loads(line)["seq"] for line in log.read_text().splitlines()]

    def called() -> bool:
        try:
            return post(sidecar, "followed", chat(user="followed")).status == 200
        except OSError:
            return False

    try:
        deadline = time.monotonic() + 60
        while not seen():  # it may not have begun to look
            assert time.monotonic() < deadline, errors.read_text()
            until(called, 60)
            sidecar.until_settled()
        before = len(seen())
        sidecar.kill("store")
        until(called, 60)
        until(called, 60)
        sidecar.until_settled()
        there = [row["seq"] for row in rows(sidecar, "--agent", "followed")]
        until(lambda: seen()[-1] == there[-1], 60)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 130
    finally:
        follower.kill()
        follower.wait()
    assert "Traceback" not in errors.read_text()
    assert len(seen()) >= before + 2
    assert seen() == there[-len(seen()) :]
