"""Stopping, reloading and being killed: what an operator does to a sidecar, and what is left."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import openai
import pytest
import yaml
from processes import alive, environment, family, wait_until_gone
from servers import until
from sidecar import CREDENTIALS, Sidecar, agent, key_of, running_sidecar

from extauthz.identity import hash_key

MESSAGES = [{"role": "user", "content": "hello"}]
SLOW_STREAM = {"x-sandbox-chunks": "5", "x-sandbox-chunk-delay-ms": "300"}


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    """One data_dir; each test starts `up` on it if it does not run."""
    agents = agent("bot") | agent("killed") | agent("reloaded")
    with running_sidecar(start=False, agents=agents, defaults={"lease": "10s"}) as made:
        yield made


@pytest.fixture
def running(sidecar: Sidecar) -> Sidecar:
    if not hasattr(sidecar, "process") or sidecar.process.poll() is not None:
        start(sidecar)
    return sidecar


def start(sidecar: Sidecar) -> None:
    """As from a shell: in a process group of its own, to which Ctrl-C goes."""
    sidecar.start(wait=False, start_new_session=True)
    sidecar.until_ready()


def ask(sidecar: Sidecar, name: str) -> None:
    sidecar.openai(name).chat.completions.create(
        model="gpt-4o-mini", messages=MESSAGES, max_tokens=50, user=name
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_the_stream_under_way_end_and_settles_it(
    running: Sidecar, number: signal.Signals
) -> None:
    processes = family(running.process.pid)
    with running.openai("bot").chat.completions.create(
        model="gpt-4o-mini",
        messages=MESSAGES,
        max_tokens=50,
        user="bot",
        stream=True,
        extra_headers=SLOW_STREAM,
    ) as stream:
        next(iter(stream))
        os.killpg(running.process.pid, number)
        choices = [choice for chunk in stream for choice in chunk.choices]

    assert choices[-1].finish_reason is not None
    assert running.process.wait(60) == 0
    assert not alive(processes)
    start(running)
    assert running.balance("bot") == (running.sandbox.total_nanousd("bot"), 0)


def test_nothing_outlives_an_up_that_was_killed_and_the_next_one_keeps_the_balances(
    running: Sidecar,
) -> None:
    ask(running, "killed")
    running.until_settled()
    processes = family(running.process.pid)

    running.process.kill()
    running.process.wait()
    start(running)  # at once: it waits until the last of the others has ended

    assert not alive(processes)
    assert running.balance("killed") == (running.sandbox.total_nanousd("killed"), 0)
    ask(running, "killed")
    running.until_settled()
    assert running.balance("killed") == (running.sandbox.total_nanousd("killed"), 0)


def test_children_of_a_killed_up_end_by_themselves_even_while_their_store_is_frozen(
    running: Sidecar,
) -> None:
    processes = family(running.process.pid)
    store = running.pid_of("store")
    os.kill(store, signal.SIGSTOP)

    running.process.kill()
    running.process.wait()

    wait_until_gone(processes - {store})
    os.kill(store, signal.SIGCONT)
    wait_until_gone(processes)


def test_a_reload_brings_new_agents_and_a_bad_file_keeps_the_old_rules(running: Sidecar) -> None:
    good = dict(running.config)
    with pytest.raises(openai.AuthenticationError):
        ask(running, "new")

    running.config = good | {"agents": good["agents"] | agent("new")}
    reload(running)
    until(lambda: "the config was reloaded" in running.output)
    ask(running, "new")
    assert running.metric("extauthz_config_last_reload_successful") == 1
    assert running.metric("extauthz_budget_limit_usd", name="new") == 1

    with_typo = {"keys": [hash_key(key_of("newer"))], "budgets": [{"limit": 1, "window": "dya"}]}
    running.config = good | {"agents": {"newer": with_typo}}
    reload(running)
    until(lambda: running.metric("extauthz_config_last_reload_successful") == 0)
    assert "agents.newer.budgets[0].window" in running.output
    ask(running, "new")
    with pytest.raises(openai.AuthenticationError):
        ask(running, "newer")

    running.config = good
    reload(running)
    until(lambda: running.metric("extauthz_config_last_reload_successful") == 1)
    with pytest.raises(openai.AuthenticationError):
        ask(running, "new")


@pytest.mark.parametrize(
    ("block", "change"),
    [
        ("listen", {"egress": "127.0.0.1:1"}),
        ("defaults", {"lease": "30s"}),
        ("defaults", {"hold_wait": "2s"}),
    ],
    ids=["listen", "lease", "hold_wait"],
)
def test_what_a_reload_cannot_change_asks_for_a_restart(
    running: Sidecar, block: str, change: dict[str, str]
) -> None:
    good = running.config
    before = running.output.count("needs a restart")
    try:
        running.config = good | {block: good[block] | change}
        reload(running)
        until(lambda: running.output.count("needs a restart") > before)
    finally:
        running.config = good
        running.write_config()

    assert running.metric("extauthz_config_last_reload_successful") == 0
    ask(running, "reloaded")


def test_a_time_zone_that_is_changed_grants_no_second_day(running: Sidecar) -> None:
    good = running.config
    budgets: list[dict[str, str]] = [{"limit": "3", "unit": "requests", "window": "day"}]
    moved = agent("moved", budgets=budgets)
    in_another_zone = agent("moved", budgets=[budgets[0] | {"timezone": "Pacific/Kiritimati"}])

    def asked_until_refused() -> int:
        for granted in range(100):
            try:
                ask(running, "moved")
            except openai.RateLimitError:
                return granted
            running.until_settled()
        raise AssertionError("it is never refused")

    try:
        running.config = good | {"agents": good["agents"] | moved}
        reloads(running)
        assert asked_until_refused() == 3

        running.config = good | {"agents": good["agents"] | in_another_zone}
        reloads(running)
        assert asked_until_refused() == 0
        running.stop()
        start(running)
        assert asked_until_refused() == 0
        listed = subprocess.run(
            [sys.executable, "-m", "extauthz", "budget", "list", "-c", str(running.config_path)],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip
        assert listed.count("agent/moved/day/requests") == 2
        assert "as it was before the file changed until" in listed
    finally:
        running.config = good
        reloads(running)


def reloads(sidecar: Sidecar) -> None:
    before = sidecar.output.count("the config was reloaded")
    reload(sidecar)
    until(lambda: sidecar.output.count("the config was reloaded") > before)


def reload(sidecar: Sidecar) -> None:
    sidecar.write_config()
    sidecar.process.send_signal(signal.SIGHUP)


def test_only_envoy_gets_the_credentials(running: Sidecar) -> None:
    service = running.pid_of("service")
    others = family(service) | {running.pid_of("store")}
    assert len(others) > 2, "the service's readers of large bodies count too"

    for name, value in CREDENTIALS.items():
        assert value in environment(running.pid_of("envoy"))
        for pid in others:
            assert name not in environment(pid)
            assert value not in environment(pid)


def test_a_start_that_is_interrupted_leaves_nothing(running: Sidecar) -> None:
    assert running.stop() == 0
    running.start(wait=False)
    until((running.data_dir / "run" / "store.sock").exists)
    processes = family(running.process.pid)

    assert running.stop() == 0

    assert not alive(processes)


def test_a_port_that_is_taken_while_it_starts_stops_everything_with_its_reason(
    sidecar: Sidecar,
) -> None:
    if sidecar.process.poll() is None:
        sidecar.stop()
    program = (
        "import sys, extauthz.server.up as up; up._listen_problem = lambda _: None; "
        "from extauthz.cli import main; main(sys.argv[1:])"
    )
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = {"metrics": f"127.0.0.1:{other.getsockname()[1]}"}
        config = sidecar.config | {"listen": sidecar.config["listen"] | taken}
        path = sidecar.dir / "taken.yaml"
        path.write_text(yaml.safe_dump(config))
        result = subprocess.run(
            [sys.executable, "-c", program, "up", "-c", str(path)],
            env=sidecar.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert result.returncode == 1
    assert f"listen.metrics: {taken['metrics']} cannot be listened on" in result.stderr
    assert "service ended at its start with status 1" in result.stderr
