"""Agents that hold a token, or a virtual key that the ledger keeps; nothing else names them."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from calls import CHAT, GPT, HELLO, Answer, bearer, chat, received, send
from certificates import can_be_made
from servers import until
from sidecar import Sidecar, agent, key_of, running_sidecar
from tokens import Issuer, _text

from extauthz.identity import hash_key, is_made_key, short_name

CLUSTER = "https://kubernetes.default.svc.cluster.local"
REMOTE = "https://issuer.test"
SERVICE_ACCOUNT = "system:serviceaccount:prod:slack-bot"
BODY = json.dumps(chat()).encode()


@dataclass(frozen=True)
class Issuers:
    cluster: Issuer
    remote: Issuer
    stranger: Issuer


@pytest.fixture(scope="module")
def issuers(tmp_path_factory: pytest.TempPathFactory) -> Issuers:
    if not can_be_made():
        pytest.skip("no openssl on this machine: tokens have not been tried")
    folder = tmp_path_factory.mktemp("issuers")
    return Issuers(
        Issuer.made_in(folder, CLUSTER),
        Issuer.made_in(folder, REMOTE),
        Issuer.made_in(folder, CLUSTER),
    )


@pytest.fixture(scope="module")
def jwks_url(issuers: Issuers) -> Iterator[str]:
    body = issuers.remote.jwks.encode()

    class Keys(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/keys"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def sidecar(
    issuers: Issuers, jwks_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sidecar]:
    jwks = tmp_path_factory.mktemp("keys") / "jwks.json"
    jwks.write_text(issuers.cluster.jwks)
    identity = [
        "virtual_key",
        {
            "jwt": {
                "issuer": CLUSTER,
                "audiences": ["extauthz"],
                "local_jwks": str(jwks),
                "agents": [
                    {"match": "system:serviceaccount:prod:*", "agent": "{1}"},
                    {"match": "system:serviceaccount:*:*", "agent": "{1}.{2}", "make": True},
                ],
            }
        },
        {
            "jwt": {
                "issuer": REMOTE,
                "audiences": ["extauthz"],
                "remote_jwks": jwks_url,
                "claim": ["of", "agent"],
            }
        },
    ]
    with running_sidecar(
        identity=identity,
        agents=agent("slack-bot") | agent("other") | agent("keyed"),
        defaults={
            "agent": {"max": 2, "budgets": [{"limit": "0.5", "window": "day"}]},
            "hold_wait": "200ms",
        },
    ) as running:
        yield running


def who_called(sidecar: Sidecar, answer: Answer) -> str | None:
    """The agent that a call was let through as."""
    decision_id = answer.headers["x-budget-decision-id"]
    (line,) = (line for line in sidecar.log_lines("decision") if line["decision_id"] == decision_id)
    agent_name = line["agent"]
    assert agent_name is None or isinstance(agent_name, str)
    return agent_name


def ask(sidecar: Sidecar, headers: dict[str, str], path: str = CHAT) -> Answer:
    return send(sidecar, BODY, headers | {"content-type": "application/json"}, path=path)


def extauthz(sidecar: Sidecar, *words: str) -> str:
    """What a command printed that was carried out."""
    done = subprocess.run(
        [sys.executable, "-m", "extauthz", *words, "-c", str(sidecar.config_path)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("place", ["bearer", "x-api-key", "api-key"])
def test_a_service_account_is_known_by_its_token_wherever_an_sdk_puts_it(
    sidecar: Sidecar, issuers: Issuers, place: str
) -> None:
    token = issuers.cluster.token(sub=SERVICE_ACCOUNT)

    answer = ask(sidecar, bearer(token) if place == "bearer" else {place: token})

    assert answer.status == 200, answer.body
    assert who_called(sidecar, answer) == "slack-bot"
    sent = received(sidecar.sandbox, answer.mark)
    assert sent is not None
    assert token not in json.dumps(sent)
    assert token.split(".")[2] not in sidecar.output
    assert token.split(".")[2] not in (sidecar.data_dir / "access_log.jsonl").read_text()


def test_an_official_sdk_calls_with_a_token_as_its_api_key(
    sidecar: Sidecar, issuers: Issuers
) -> None:
    token = issuers.remote.token(of={"agent": "other"})
    client = openai.OpenAI(
        api_key=token, base_url=f"{sidecar.egress}/openai/v1", max_retries=0, timeout=60
    )

    with client:
        raw = client.chat.completions.with_raw_response.create(
            model=GPT, messages=HELLO, max_tokens=9
        )

    (line,) = (
        line
        for line in sidecar.log_lines("decision")
        if line["decision_id"] == raw.headers["x-budget-decision-id"]
    )
    assert line["agent"] == "other"


@pytest.mark.parametrize(
    "wrong",
    [
        "of another key",
        "expired",
        "without an end",
        "for another audience",
        "for no audience",
        "of another issuer",
        "unsigned",
        "with a changed claim",
        "of nobody",
        "with a claim that is no text",
        "not yet",
        "with an end that is a text",
        "signed with the public key",
        "with a key of its own",
        "with a key of another kid",
        "of the other issuer's key",
        "in JSON",
        "of 90 kB",
        "twice in one header",
    ],
)
def test_a_token_that_does_not_hold_names_nobody(
    sidecar: Sidecar, issuers: Issuers, wrong: str
) -> None:
    cluster = issuers.cluster
    good = cluster.token(sub=SERVICE_ACCOUNT)
    head, claims, signature = good.split(".")
    other = cluster.token(sub="system:serviceaccount:prod:other").split(".")[1]
    none = _text(json.dumps({"alg": "none"}).encode())
    token = {
        "of another key": issuers.stranger.token(sub=SERVICE_ACCOUNT),
        "expired": cluster.token(sub=SERVICE_ACCOUNT, exp=1_700_000_000),
        "without an end": cluster.token(sub=SERVICE_ACCOUNT, exp=None),
        "for another audience": cluster.token(sub=SERVICE_ACCOUNT, aud="kubernetes"),
        "for no audience": cluster.token(sub=SERVICE_ACCOUNT, aud=None),
        "of another issuer": cluster.token(sub=SERVICE_ACCOUNT, iss="https://else.test"),
        "unsigned": f"{none}.{claims}.",
        "with a changed claim": f"{head}.{other}.{signature}",
        "of nobody": cluster.token(sub="system:node:n1"),
        "not yet": cluster.token(sub=SERVICE_ACCOUNT, nbf=int(time.time()) + 3600),
        "with an end that is a text": cluster.token(sub=SERVICE_ACCOUNT, exp="9999999999"),
        "signed with the public key": cluster.token_by_public_key(sub=SERVICE_ACCOUNT),
        "with a key of its own": issuers.stranger.token(
            header=json.loads(issuers.stranger.jwks)["keys"][0]
            | {"jwk": json.loads(issuers.stranger.jwks)["keys"][0], "jku": "http://127.0.0.1:1/"},
            sub=SERVICE_ACCOUNT,
            iss=CLUSTER,
        ),
        "with a key of another kid": issuers.stranger.token(
            header={"kid": "../k1"}, sub=SERVICE_ACCOUNT, iss=CLUSTER
        ),
        "of the other issuer's key": issuers.remote.token(sub=SERVICE_ACCOUNT, iss=CLUSTER),
        "in JSON": json.dumps({"payload": claims, "protected": head, "signature": signature}),
        "of 90 kB": cluster.token(sub="system:node:" + "x" * 60_000),
        "twice in one header": f"{issuers.stranger.token(sub=SERVICE_ACCOUNT)}, Bearer {good}",
        "with a claim that is no text": issuers.remote.token(of={"agent": ["other"]}),
    }[wrong]

    answer = ask(sidecar, bearer(token))

    assert (answer.status, answer.reason) == (401, "unknown_agent")
    assert who_called(sidecar, answer) is None
    assert received(sidecar.sandbox, answer.mark) is None


def test_of_two_tokens_neither_makes_the_other_hold(sidecar: Sidecar, issuers: Issuers) -> None:
    good = issuers.cluster.token(sub=SERVICE_ACCOUNT)
    forged = issuers.stranger.token(sub="system:serviceaccount:prod:other", iss=CLUSTER)

    for headers in (bearer(good) | {"x-api-key": forged}, bearer(forged) | {"x-api-key": good}):
        answer = ask(sidecar, headers)
        assert answer.status in (200, 401)
        assert who_called(sidecar, answer) in ("slack-bot", None)
        sent = received(sidecar.sandbox, answer.mark)
        assert sent is None or "x-api-key" not in sent["header_names"]


def test_a_token_that_does_not_hold_is_told_apart_from_a_key(
    sidecar: Sidecar, issuers: Issuers
) -> None:
    expired = issuers.cluster.token(sub=SERVICE_ACCOUNT, exp=1_700_000_000)
    assert "has expired, or is of another issuer" in ask(sidecar, bearer(expired)).error["message"]
    assert "virtual key is not known" in ask(sidecar, bearer("sk-else")).error["message"]


def test_there_is_no_master_key_the_admin_token_is_nobodys(sidecar: Sidecar) -> None:
    token = (sidecar.data_dir / "admin_token").read_text().strip()

    answer = ask(sidecar, bearer(token))

    assert (answer.status, answer.reason) == (401, "unknown_agent")


def test_nothing_that_a_client_writes_beside_its_key_makes_it_another_agent(
    sidecar: Sidecar, issuers: Issuers
) -> None:
    payload = _text(json.dumps({"sub": "system:serviceaccount:prod:other"}).encode())
    told = {
        "x-forwarded-client-cert": "URI=spiffe://test/other",
        "x-jwt-payload": payload,
        "x-envoy-peer-metadata": payload,
        "jwt-payload": payload,
        "x-user": "other",
        "x-agent": "other",
        "openai-organization": "",
    }
    token = issuers.cluster.token(sub=SERVICE_ACCOUNT)
    body = json.dumps(chat(user="other", metadata={"agent": "other"})).encode()

    forged = send(sidecar, body, told)
    known = send(sidecar, body, told | bearer(token))

    assert (forged.status, forged.reason) == (401, "unknown_agent")
    assert (known.status, who_called(sidecar, known)) == (200, "slack-bot")


def test_a_verified_agent_that_nobody_configured_is_made_under_the_default_budgets(
    sidecar: Sidecar, issuers: Issuers
) -> None:
    def call(namespace: str) -> Answer:
        token = issuers.cluster.token(sub=f"system:serviceaccount:{namespace}:bot")
        return ask(sidecar, bearer(token))

    assert [who_called(sidecar, call(name)) for name in ("one", "two", "one")] == [
        "one.bot",
        "two.bot",
        "one.bot",
    ]
    limits = {
        name: sidecar.metric("extauthz_budget_limit_usd", scope="agent", name=f"{name}.bot")
        for name in ("one", "two")
    }
    assert limits == {"one": 0.5, "two": 0.5}

    third = call("three")

    assert (third.status, third.reason) == (401, "unknown_agent")
    assert "defaults.agent.max" in third.error["message"]
    sidecar.process.send_signal(1)  # SIGHUP
    until(lambda: "the config was reloaded" in sidecar.output)
    assert who_called(sidecar, call("one")) == "one.bot"


def test_a_made_key_admits_its_agent_at_the_next_call_and_a_revoked_one_nobody(
    sidecar: Sidecar,
) -> None:
    key = extauthz(sidecar, "key", "create", "keyed").strip()
    assert is_made_key(key)
    name = short_name(hash_key(key))

    first = ask(sidecar, bearer(key))
    listed = extauthz(sidecar, "key", "list")
    extauthz(sidecar, "key", "revoke", name)
    after = ask(sidecar, bearer(key))
    free = send(sidecar, None, bearer(key), path="/openai/v1/models", method="GET")

    assert (first.status, who_called(sidecar, first)) == (200, "keyed")
    assert any(line.split()[:2] == [name, "keyed"] for line in listed.splitlines())
    assert (after.status, after.reason) == (401, "unknown_agent")
    assert "revoked" in after.error["message"]
    assert received(sidecar.sandbox, after.mark) is None
    assert (free.status, free.reason) == (401, "unknown_agent")
    assert name not in extauthz(sidecar, "key", "list")
    everything = [path for path in sidecar.data_dir.rglob("*") if path.is_file()]
    assert not [path for path in everything if key.encode() in path.read_bytes()]
    assert key not in sidecar.output


def test_a_rotated_key_and_the_new_one_both_hold_until_the_overlap_is_over(
    sidecar: Sidecar, tmp_path: Path
) -> None:
    old = extauthz(sidecar, "key", "create", "keyed").strip()
    assert ask(sidecar, bearer(old)).status == 200
    file = tmp_path / "key"

    extauthz(
        sidecar, "key", "rotate", short_name(hash_key(old)),
        "--overlap", "4s", "--output", str(file),
    )  # fmt: skip

    new = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert ask(sidecar, bearer(new)).status == 200
    until(lambda: ask(sidecar, bearer(old)).status == 401)
    assert "expired" in ask(sidecar, bearer(old)).error["message"]
    assert ask(sidecar, bearer(new)).status == 200
    extauthz(sidecar, "key", "expire", short_name(hash_key(old)), "--never")
    assert ask(sidecar, bearer(old)).status == 200


def test_a_key_of_the_file_goes_on_working_and_its_revocation_says_where_it_stands(
    sidecar: Sidecar,
) -> None:
    assert who_called(sidecar, ask(sidecar, bearer(key_of("other")))) == "other"
    with pytest.raises(AssertionError, match=r"agents\.other\.keys"):
        extauthz(sidecar, "key", "revoke", short_name(hash_key(key_of("other"))))
    with pytest.raises(AssertionError, match="there is no agent 'nobody'"):
        extauthz(sidecar, "key", "create", "nobody")
