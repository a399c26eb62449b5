"""Calls to the providers' own host names, over TLS: the same chain, and nothing but these names."""

import json
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path

import httpx
import openai
import pytest
from calls import HELLO, chat, headers_of
from sidecar import Sidecar, agent, free_port, key_of, running_sidecar

OPENAI, ANTHROPIC = "api.openai.com", "api.anthropic.com"
BODY = json.dumps(chat()).encode()


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    intercept = {
        "listen": f"127.0.0.1:{free_port()}",
        "hosts": {"openai": [OPENAI], "anthropic": [ANTHROPIC]},
    }
    with running_sidecar(start=False, agents=agent("bot", "10.00"), intercept=intercept) as running:
        running.write_config()
        initialised = init_authority(running.config_path)
        assert initialised.returncode == 0, initialised.stderr
        running.start()
        yield running


def init_authority(config: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "extauthz", "ca", "init", "-c", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def ca_of(sidecar: Sidecar) -> Path:
    return sidecar.data_dir / "ca" / "ca.pem"


def address_of(sidecar: Sidecar) -> tuple[str, int]:
    host, _, port = sidecar.config["intercept"]["listen"].partition(":")
    return host, int(port)


def tls(sidecar: Sidecar, name: str | None) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(ca_of(sidecar)))
    context.check_hostname = name is not None
    return context.wrap_socket(
        socket.create_connection(address_of(sidecar), 20), server_hostname=name
    )


def ask(sidecar: Sidecar, name: str, host: str, path: str) -> HTTPResponse:
    """One chat completion with this name in the TLS and this host in the request."""
    fields = headers_of("bot") | {"host": host, "content-length": str(len(BODY))}
    head = "".join(f"{key}: {value}\r\n" for key, value in fields.items())
    with tls(sidecar, name) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + BODY)
        response = HTTPResponse(connection)
        response.begin()
        response.text = response.read().decode()  # type: ignore[attr-defined]
        return response


def led_here(sidecar: Sidecar, *, http2: bool) -> httpx.Client:
    """A client whose every connection arrives at the intercept listener, as by the firewall."""
    context = ssl.create_default_context(cafile=str(ca_of(sidecar)))
    transport = httpx.HTTPTransport(verify=context, http1=not http2, http2=http2)
    backend = transport._pool._network_backend
    there, connect = address_of(sidecar), backend.connect_tcp
    backend.connect_tcp = lambda host, port, **options: connect(*there, **options)
    return httpx.Client(transport=transport)


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_an_sdk_with_its_default_url_is_budgeted(sidecar: Sidecar, http2: bool) -> None:
    before, billed = sidecar.balance("bot")[0], sidecar.sandbox.total_nanousd()
    with (
        led_here(sidecar, http2=http2) as http,
        openai.OpenAI(api_key=key_of("bot"), http_client=http, max_retries=0) as client,
    ):
        assert str(client.base_url) == f"https://{OPENAI}/v1/"
        answer = client.chat.completions.with_raw_response.create(
            model="gpt-4o-mini", messages=HELLO, max_tokens=20
        )
    assert answer.headers["x-budget-decision-id"]
    assert answer.http_response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    sidecar.until_settled()

    spent = sidecar.balance("bot")[0] - before
    assert spent == sidecar.sandbox.total_nanousd() - billed > 0


@pytest.mark.parametrize(
    ("host", "path", "status", "reason"),
    [
        (OPENAI, "/v1/chat/completions", 200, None),
        (f"{OPENAI}:443", "/v1/chat/completions", 200, None),
        (OPENAI.upper(), "/v1/chat/completions", 200, None),
        (ANTHROPIC, "/v1/messages", 421, "unknown_route"),
        ("api.openai.com.", "/v1/chat/completions", 421, "unknown_route"),
        ("127.0.0.1", "/openai/v1/chat/completions", 421, "unknown_route"),
        (f"{OPENAI}:8443", "/v1/chat/completions", 421, "unknown_route"),
        # The prefix of the egress is no part of a provider's path, and none of Check's.
        (OPENAI, "/openai/v1/chat/completions", 403, "unmetered_endpoint"),
        (OPENAI, "/anthropic/v1/messages", 403, "unmetered_endpoint"),
        (OPENAI, "/../v1/chat/completions", 200, None),
        (OPENAI, "/v1%2fchat/completions", 400, "malformed_request"),
        (OPENAI, f"http://{ANTHROPIC}/v1/messages", 421, "unknown_route"),
        (OPENAI, f"https://{ANTHROPIC}/v1/messages", 421, "unknown_route"),
    ],
)
def test_the_request_must_be_for_the_host_that_the_tls_is_for(
    sidecar: Sidecar, host: str, path: str, status: int, reason: str | None
) -> None:
    left = len(sidecar.sandbox.requests())

    answer = ask(sidecar, OPENAI, host, path)

    assert (answer.status, answer.getheader("x-budget-reason")) == (status, reason)
    assert len(sidecar.sandbox.requests()) - left == (status == 200)


def test_a_key_that_is_nobodys_is_refused_there_too(sidecar: Sidecar) -> None:
    with led_here(sidecar, http2=False) as http:
        answer = http.post(f"https://{OPENAI}/v1/chat/completions", json=chat())

    assert (answer.status_code, answer.headers["x-budget-reason"]) == (401, "unknown_agent")


@pytest.mark.parametrize("name", [None, "example.com", "chat.openai.com", "127.0.0.1.nip.io"])
def test_a_connection_for_any_other_name_is_closed(sidecar: Sidecar, name: str | None) -> None:
    with pytest.raises((ssl.SSLError, ConnectionResetError, EOFError)):
        tls(sidecar, name).close()


def test_a_connection_that_is_no_tls_is_closed(sidecar: Sidecar) -> None:
    with socket.create_connection(address_of(sidecar), 20) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: api.openai.com\r\n\r\n")
        with suppress(ConnectionResetError):
            assert connection.recv(100) == b""


def test_the_cas_key_is_its_owners_alone_and_is_never_made_twice(sidecar: Sidecar) -> None:
    key = sidecar.data_dir / "ca" / "ca.key"
    text = key.read_bytes()

    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    again = init_authority(sidecar.config_path)
    assert again.returncode == 1
    assert "is not overwritten" in again.stderr
    assert key.read_bytes() == text


def test_the_ca_can_sign_for_no_other_name(sidecar: Sidecar, tmp_path: Path) -> None:
    from extauthz.server.interception import Authority  # noqa: PLC0415 - 0.1 s

    paths = tmp_path / "other.pem", tmp_path / "other.key"
    Authority(sidecar.data_dir / "ca").issue("bank.example", *paths)

    verified = subprocess.run(
        ["openssl", "verify", "-CAfile", str(ca_of(sidecar)), str(paths[0])],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert verified.returncode != 0
    assert "permitted subtree violation" in verified.stderr + verified.stdout
