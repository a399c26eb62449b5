"""Who asks: the virtual key says so and nothing else does, and it stays on this side of Envoy."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from calls import CHAT, CLAUDE, GPT, HELLO, MESSAGES, bearer, chat, message, received, send
from sidecar import CREDENTIALS, Sidecar, agent, key_of, running_sidecar

from extauthz.identity import hash_key

ODD_KEYS = {
    "word": "hunter2",
    "openai-like": "sk-proj-" + "A1b2_-" * 30,
    "spaced": "two words, a comma; and = signs",
    "bearer-like": "Bearer xyz",
    "long": "k" * 4000,
    "beyond-ascii": "schlüssel-鍵",
}
BODY = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}],"max_tokens":9}'


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    odd = {
        name: {"keys": [hash_key(key)], "budgets": [{"limit": "1.00", "window": "day"}]}
        for name, key in ODD_KEYS.items()
    }
    with running_sidecar(agents=agent("bot") | agent("other") | odd) as running:
        yield running


def agent_that_spent(sidecar: Sidecar, decision_id: str) -> str | None:
    (line,) = (line for line in sidecar.log_lines("decision") if line["decision_id"] == decision_id)
    return line["agent"]


def test_the_openai_sdk_is_known_by_its_api_key(sidecar: Sidecar) -> None:
    answer = sidecar.openai("bot").chat.completions.with_raw_response.create(
        model=GPT, messages=HELLO, max_tokens=9
    )

    assert agent_that_spent(sidecar, answer.headers["x-budget-decision-id"]) == "bot"


def test_the_anthropic_sdk_is_known_by_its_api_key(sidecar: Sidecar) -> None:
    answer = sidecar.anthropic("bot").messages.with_raw_response.create(
        model=CLAUDE, messages=HELLO, max_tokens=9
    )

    assert agent_that_spent(sidecar, answer.headers["x-budget-decision-id"]) == "bot"


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize(
    "headers",
    [
        bearer(key_of("bot")),
        {"authorization": f"bearer   {key_of('bot')}  "},
        {"Authorization": f"BEARER {key_of('bot')}"},
        {"x-api-key": key_of("bot")},
        {"X-Api-Key": key_of("bot")},
        bearer(key_of("bot")) | {"x-api-key": key_of("bot")},
        {"authorization": "Basic dXNlcjpwYXNz", "x-api-key": key_of("bot")},
    ],
    ids=["bearer", "spaced-bearer", "upper-case", "x-api-key", "X-Api-Key", "both", "basic-too"],
)
def test_a_key_is_read_from_wherever_an_sdk_puts_it(
    sidecar: Sidecar, path: str, headers: dict[str, str]
) -> None:
    body = BODY if path == CHAT else BODY.replace(GPT.encode(), CLAUDE.encode())

    answer = send(sidecar, body, headers | {"anthropic-version": "2023-06-01"}, path=path)

    assert answer.status == 200
    assert agent_that_spent(sidecar, answer.headers["x-budget-decision-id"]) == "bot"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer "},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"x-api-key": ""},
        {"x-auth-token": key_of("bot")},
        {"x_api_key": key_of("bot")},
        {"cookie": f"authorization={key_of('bot')}"},
        bearer("xa_nobody_has_this_key"),
        {"x-api-key": "xa_nobody_has_this_key"},
        bearer(key_of("bot").upper()),
        bearer(hash_key(key_of("bot"))),
        bearer(CREDENTIALS["SANDBOX_OPENAI_CREDENTIAL"]),
        bearer(key_of("bot")) | {"x-api-key": key_of("other")},
        bearer(key_of("bot")) | {"x-api-key": "xa_nobody_has_this_key"},
        bearer(f"{key_of('bot')},{key_of('bot')}"),
    ],
    ids=[
        "none",
        "empty",
        "empty-bearer",
        "basic",
        "empty-x-api-key",
        "another-header",
        "underscores",
        "cookie",
        "unknown-bearer",
        "unknown-x-api-key",
        "other-case",
        "the-hash-itself",
        "the-providers-own",
        "two-known-keys",
        "known-and-unknown",
        "a-list",
    ],
)
def test_no_key_an_unknown_one_or_two_that_differ_are_refused(
    sidecar: Sidecar, headers: dict[str, str]
) -> None:
    answer = send(sidecar, BODY, headers)

    assert (answer.status, answer.reason) == (401, "unknown_agent")
    assert answer.error["code"] == "unknown_agent"
    assert received(sidecar.sandbox, answer.mark) is None


def test_two_lines_of_one_header_are_no_way_to_bring_two_keys(sidecar: Sidecar) -> None:
    host, _, port = sidecar.egress.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.putrequest("POST", CHAT)
    connection.putheader("x-api-key", key_of("bot"))
    connection.putheader("x-api-key", key_of("other"))
    connection.putheader("content-length", str(len(BODY)))
    connection.endheaders(BODY)

    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize("name", ODD_KEYS)
@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_a_key_that_is_declared_by_its_hash_may_be_any_string(
    sidecar: Sidecar, name: str, header: str
) -> None:
    key = ODD_KEYS[name].encode().decode("latin-1")  # what http.client writes as these very bytes
    value = f"Bearer {key}" if header == "authorization" else key

    answer = send(sidecar, BODY, {header: value})

    assert answer.status == 200
    assert agent_that_spent(sidecar, answer.headers["x-budget-decision-id"]) == name


def test_a_header_that_is_no_text_is_refused_and_breaks_nothing(sidecar: Sidecar) -> None:
    answer = send(sidecar, BODY, {"authorization": "Bearer \xff\xfe\x80"})

    assert (answer.status, answer.reason) == (401, "unknown_agent")


@pytest.mark.parametrize(
    ("path", "body", "provider", "header"),
    [
        (CHAT, chat(), "OPENAI", "authorization"),
        (MESSAGES, message(), "ANTHROPIC", "x-api-key"),
    ],
    ids=["openai", "anthropic"],
)
def test_the_agents_credential_never_reaches_the_provider_whose_own_envoy_adds(
    sidecar: Sidecar, path: str, body: dict[str, object], provider: str, header: str
) -> None:
    every_place = bearer(key_of("bot")) | {
        "x-api-key": key_of("bot"),
        "api-key": key_of("bot"),
        "x-goog-api-key": key_of("bot"),
        "proxy-authorization": f"Bearer {key_of('bot')}",
        "cookie": f"key={key_of('bot')}",
        "anthropic-version": "2023-06-01",
    }

    answer = send(sidecar, json.dumps(body).encode(), every_place, path=path)

    # The sandbox answers 200 to its own credential only.
    assert answer.status == 200
    seen = received(sidecar.sandbox, answer.mark)
    assert seen is not None
    assert seen["credential_headers"] == [header]
    assert key_of("bot") not in str(seen)


def test_the_service_has_never_seen_a_providers_credential(sidecar: Sidecar) -> None:
    environment = Path(f"/proc/{sidecar.pid_of('service')}/environ").read_text()

    assert not any(name in environment for name in CREDENTIALS)
    assert not any(value in environment for value in CREDENTIALS.values())
    assert not any(value in sidecar.output for value in CREDENTIALS.values())


def test_no_key_stands_in_a_log_or_in_the_data_dir(sidecar: Sidecar) -> None:
    send(sidecar, BODY, bearer(key_of("bot")))
    send(sidecar, BODY, bearer("xa_nobody_has_this_key"))
    sidecar.until_settled()

    files = [path for path in sidecar.data_dir.rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files) + sidecar.output.encode()
    assert key_of("bot").encode() not in written
    assert b"xa_nobody_has_this_key" not in written


def test_what_a_client_says_of_itself_makes_it_nobody_else(sidecar: Sidecar) -> None:
    claims = {
        "x-budget-agent": "other",
        "x-extauthz-agent": "other",
        "x-request-id": "chosen-by-the-client",
        "x-forwarded-for": "127.0.0.1",
        "x-envoy-max-retries": "5",
        "x-envoy-original-path": "/openai/v1/models",
    }

    answer = send(sidecar, BODY, bearer(key_of("bot")) | claims)

    assert agent_that_spent(sidecar, answer.headers["x-budget-decision-id"]) == "bot"
    seen = received(sidecar.sandbox, answer.mark)
    assert seen is not None
    assert not set(claims) & set(seen["header_names"])


@pytest.mark.parametrize("key", ["", "xa_nobody_has_this_key"], ids=["none", "unknown"])
def test_the_openai_sdk_raises_its_authentication_error(sidecar: Sidecar, key: str) -> None:
    client = sidecar.openai("unknown")
    headers: dict[str, Any] = bearer(key) if key else {"authorization": openai.Omit()}

    with pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model=GPT, messages=HELLO, extra_headers=headers)

    assert caught.value.code == "unknown_agent"
    assert "api_key" in caught.value.message or "virtual key" in caught.value.message


def test_the_anthropic_sdk_raises_its_authentication_error(sidecar: Sidecar) -> None:
    client = sidecar.anthropic("unknown")

    with pytest.raises(anthropic.AuthenticationError) as caught:
        client.messages.create(model=CLAUDE, messages=HELLO, max_tokens=9)

    assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]


def test_free_endpoints_ask_for_a_key_too_and_hold_nothing(sidecar: Sidecar) -> None:
    with pytest.raises(openai.AuthenticationError):
        sidecar.openai("unknown").models.list()

    names = [model.id for model in sidecar.openai("bot").models.list()]

    assert GPT in names
    assert CLAUDE in [model.id for model in sidecar.anthropic("bot").models.list()]
    sidecar.until_settled()
