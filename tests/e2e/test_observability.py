"""Metrics, logs, health and files: all that is promised is there, and nothing that is secret."""

import http.client
import json
import os
import re
import signal
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from servers import until
from sidecar import CREDENTIALS, Sidecar, agent, key_of, running_sidecar

from extauthz import __version__

PROMPT, ANSWER = "the-prompt-that-nobody-logs", "the-answer-that-nobody-logs"
FILE_SECRET = "sk-sandbox-anthropic-credential"
"""As in CREDENTIALS, but Envoy reads it from a file here."""

CONTRACT = {
    "extauthz_checks_total": {"provider", "model", "decision", "reason"},
    "extauthz_check_duration_seconds_count": set(),
    "extauthz_checks_cancelled_total": set(),
    "extauthz_settlements_total": {"outcome"},
    "extauthz_settlement_lag_seconds_count": set(),
    "extauthz_spent_usd_total": {"agent", "provider", "model"},
    "extauthz_budget_limit_usd": {"scope", "name", "window"},
    "extauthz_budget_spent_usd": {"scope", "name", "window"},
    "extauthz_budget_held_usd": {"scope", "name", "window"},
    "extauthz_overshoot_usd_total": set(),
    "extauthz_reservations_open": set(),
    "extauthz_build_info": {"version"},
    "extauthz_config_last_reload_successful": set(),
    "process_resident_memory_bytes": set(),
    "process_open_fds": set(),
}


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Sidecar, str]]:
    """A sidecar that was used a bit, and its metrics from before that."""
    agents = agent("bot", team="support") | agent("poor", "0.000001") | agent("idle")
    with running_sidecar(
        start=False,
        agents=agents,
        teams={"support": {"budgets": [{"limit": 5, "window": "week"}]}},
        orgs={"default": {"budgets": [{"limit": 50, "window": "month"}]}},
        providers={"anthropic": {"credential": {"file": "./anthropic.key"}}},
    ) as made:
        del made.config["providers"]["anthropic"]["credential"]["env"]
        made.config["providers"]["anthropic"]["credential"]["file"] = str(made.dir / "key")
        (made.dir / "key").write_text(FILE_SECRET + "\n")  # as editors write it
        made.start()
        until(lambda: "extauthz_budget_limit_usd" in exposition(made))
        at_start = exposition(made)
        use(made)
        yield made, at_start


@pytest.fixture
def sidecar(started: tuple[Sidecar, str]) -> Sidecar:
    return started[0]


def use(sidecar: Sidecar) -> None:
    """A bit of everything: JSON, a stream, a refusal of each kind."""
    messages: Any = [{"role": "user", "content": PROMPT}]
    headers = {"x-sandbox-response-text": ANSWER}
    bot = sidecar.openai("bot").chat.completions
    bot.create(model="gpt-4o-mini", messages=messages, max_tokens=20, extra_headers=headers)
    for _ in bot.create(
        model="gpt-4o-mini", messages=messages, max_tokens=20, stream=True, extra_headers=headers
    ):
        pass
    sidecar.anthropic("bot").messages.create(
        model="claude-haiku-4-5", messages=messages, max_tokens=20, extra_headers=headers
    )
    for name, model in (
        ("poor", "gpt-4o-mini"),
        ("nobody", "gpt-4o-mini"),
        ("bot", "no-such-model"),
    ):
        with pytest.raises(openai.APIStatusError):
            sidecar.openai(name).chat.completions.create(model=model, messages=messages)
    sidecar.until_settled()


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def exposition(sidecar: Sidecar) -> str:
    return get(f"{sidecar.metrics_url}/metrics")[1]


def series(text: str) -> set[str]:
    """Every series, without its value."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {line.rpartition(" ")[0] for line in lines}


@pytest.mark.parametrize("name", CONTRACT)
def test_every_promised_metric_is_there_with_its_labels(sidecar: Sidecar, name: str) -> None:
    found = [each for each in series(exposition(sidecar)) if each.partition("{")[0] == name]

    assert found
    for each in found:
        assert set(re.findall(r'(\w+)="', each)) == CONTRACT[name]


def test_budgets_of_every_scope_are_there_from_the_start_with_nothing_spent(
    started: tuple[Sidecar, str],
) -> None:
    budgets = {
        'scope="agent",name="bot",window="day"': "1.0",
        'scope="agent",name="poor",window="day"': "1e-06",
        'scope="agent",name="idle",window="day"': "1.0",
        'scope="team",name="support",window="week"': "5.0",
        'scope="org",name="default",window="month"': "50.0",
    }
    samples = dict(
        line.rsplit(" ", 1) for line in started[1].splitlines() if not line.startswith("#")
    )
    for labels, limit in budgets.items():
        assert samples[f"extauthz_budget_limit_usd{{{sorted_labels(labels)}}}"] == limit
        assert samples[f"extauthz_budget_spent_usd{{{sorted_labels(labels)}}}"] == "0.0"
        assert samples[f"extauthz_budget_held_usd{{{sorted_labels(labels)}}}"] == "0.0"


def sorted_labels(labels: str) -> str:
    return ",".join(sorted(labels.split(",")))


def test_what_was_spent_is_the_same_in_every_metric(sidecar: Sidecar) -> None:
    usd = sidecar.balance("bot")[0] / 10**9

    assert usd > 0
    for name, labels in (
        ("extauthz_budget_spent_usd", {"scope": "agent", "name": "bot"}),
        ("extauthz_budget_spent_usd", {"scope": "team", "name": "support"}),
        ("extauthz_spent_usd_total", {"agent": "bot"}),
    ):
        assert sidecar.metric(name, **labels) == pytest.approx(usd, abs=1e-12)
    assert sidecar.metric("extauthz_build_info", version=__version__) == 1
    assert sidecar.metric("extauthz_checks_total", decision="allow", reason="ok") == 3
    for reason in ("request_too_large", "unknown_agent", "unpriced_model"):
        assert sidecar.metric("extauthz_checks_total", decision="deny", reason=reason) == 1


def test_clients_cannot_make_new_series(sidecar: Sidecar) -> None:
    def provoke(marks: range) -> set[str]:
        client = sidecar.openai("bot")
        for n in marks:
            with pytest.raises(openai.APIStatusError):
                client.chat.completions.create(model=f"gpt-4o-mini-{n}-zz", messages=[])
            with pytest.raises(openai.APIStatusError):
                client.post(f"/paths/{n}?query={n}", cast_to=object, body={"model": f"m{n}"})
            with pytest.raises(openai.APIStatusError):
                client.post(
                    "/chat/completions",
                    cast_to=object,
                    body={"model": f"m{n}", "messages": []},
                    options={"headers": {"authorization": f"Bearer xa_{n}"}},
                )
            get(f"{sidecar.egress}/nowhere-{n}")
        return series(exposition(sidecar))

    assert provoke(range(1, 50)) == provoke(range(1))


def test_each_decision_is_one_line_of_json_with_its_reason_and_amounts(sidecar: Sidecar) -> None:
    decisions = sidecar.log_lines("decision")
    allowed = next(line for line in decisions if line["decision"] == "allow")
    poor = next(line for line in decisions if line["agent"] == "poor")

    assert allowed["reason"] == "ok"
    assert (allowed["agent"], allowed["provider"]) == ("bot", "openai")
    assert float(allowed["estimate_usd"]) > 0
    assert len(allowed["budgets"]) == 3
    assert allowed["reservation_id"] != allowed["decision_id"]
    assert (poor["decision"], poor["reason"]) == ("deny", "request_too_large")
    assert poor["reservation_id"] is None
    settled = {line["reservation_id"]: line for line in sidecar.log_lines("settlement")}
    cost = settled[allowed["reservation_id"]]
    assert cost["outcome"] == "settled"
    assert 0 < float(cost["cost_usd"]) <= float(cost["estimate_usd"])


def test_every_line_of_the_log_is_json_but_for_the_words_of_the_start(sidecar: Sidecar) -> None:
    text = sidecar.output
    said = text[text.index("extauthz is up") : text.index("(see store.url).")].splitlines()
    for line in text.splitlines():
        if not any(line.startswith(words[:20]) for words in said):
            assert {"time", "level"} <= json.loads(line).keys()


def test_no_secret_and_no_text_of_a_call_is_anywhere(sidecar: Sidecar) -> None:
    secrets = [*CREDENTIALS.values(), *map(key_of, ("bot", "poor", "idle", "nobody"))]
    places = {str(path): path.read_bytes() for path in files_of(sidecar) if path.is_file()}
    places["output"] = sidecar.output.encode()
    places["metrics"] = exposition(sidecar).encode()
    assert len([place for place in places if "appendonly" in place]) >= 2
    assert places[str(sidecar.data_dir / "access_log.jsonl")]

    found = [
        (place, secret)
        for place, content in places.items()
        for secret in (*secrets, PROMPT, ANSWER)
        if secret.encode() in content
    ]
    assert not found


def files_of(sidecar: Sidecar) -> list[Path]:
    return [sidecar.data_dir, *sidecar.data_dir.rglob("*")]


def test_everything_in_data_dir_is_its_owners_alone(sidecar: Sidecar) -> None:
    for path in files_of(sidecar):
        mode = path.lstat().st_mode
        assert not mode & (stat.S_IRWXG | stat.S_IRWXO), f"{path} {stat.filemode(mode)}"


def test_no_command_line_holds_a_secret(sidecar: Sidecar) -> None:
    for name in ("store", "service", "envoy"):
        command = Path(f"/proc/{sidecar.pid_of(name)}/cmdline").read_text()
        for secret in CREDENTIALS.values():
            assert secret not in command


def test_the_admin_listener_wants_its_token(sidecar: Sidecar) -> None:
    url = f"http://{sidecar.config['listen']['admin']}/v1/budgets"
    token = (sidecar.data_dir / "admin_token").read_text().strip()

    assert get(url)[0] == 401
    assert get(url, authorization="Bearer wrong")[0] == 401
    assert get(url, authorization="Bearer ")[0] == 401
    status, text = get(url, authorization=f"Bearer {token}")
    assert status == 200
    assert len(json.loads(text)["budgets"]) == 5


def test_a_token_that_is_no_text_is_refused_like_any_other(sidecar: Sidecar) -> None:
    host, port = sidecar.config["listen"]["admin"].split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.putrequest("GET", "/v1/budgets")
    connection.putheader("authorization", b"Bearer \xff\xfe")
    connection.endheaders()

    assert connection.getresponse().status == 401
    connection.close()


def test_a_frozen_store_makes_it_unready_with_a_reason_but_not_dead(sidecar: Sidecar) -> None:
    assert get(f"{sidecar.metrics_url}/readyz") == (200, "ready\n")
    store = sidecar.pid_of("store")
    os.kill(store, signal.SIGSTOP)
    try:
        until(lambda: get(f"{sidecar.metrics_url}/readyz")[0] == 503)
        _, text = get(f"{sidecar.metrics_url}/readyz")
        assert "store" in text
        assert "did not answer" in text
        assert get(f"{sidecar.metrics_url}/healthz") == (200, "ok\n")
        until(lambda: "extauthz_budget_spent_usd{" not in exposition(sidecar))
        without = exposition(sidecar)
    finally:
        os.kill(store, signal.SIGCONT)

    assert "extauthz_checks_total{" in without
    assert "extauthz_budget_spent_usd{" not in without, "an old balance would look like news"
    until(lambda: get(f"{sidecar.metrics_url}/readyz")[0] == 200)
