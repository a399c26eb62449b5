"""Agents that show a client certificate: who they are is what the agents' CA has signed."""

import contextlib
import http.client
import json
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import openai
import pytest
from calls import GPT, HELLO, bearer, chat
from certificates import Certificates, can_be_made
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from servers import until
from sidecar import Sidecar, agent, key_of, running_sidecar

BODY = json.dumps(chat()).encode()


@dataclass(frozen=True)
class Shown:
    """What an agent shows."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Agents:
    """The CA of the agents, and what it and another one have signed."""

    folder: Path

    def certificate(
        self, name: str, san: str, *, ca: str = "agents", seconds: int | None = None
    ) -> Shown:
        """A certificate with an alternative name, as openssl writes it; '' for none."""
        folder = self.folder / ca
        if not folder.exists():
            folder.mkdir()
            Certificates.made_in(folder)
        request, key, signed = (self.folder / f"{name}.{end}" for end in ("csr", "key", "pem"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={san}\n" if san else "keyUsage=digitalSignature\n")
        new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl(*new, "-subj", "/CN=bot.agents.test", "-keyout", key,
                "-out", request)  # fmt: skip
        by = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial")
        openssl("x509", "-req", "-in", request, "-days", "2", *by, "-extfile", extensions,
                "-out", signed)  # fmt: skip
        if seconds is not None:
            shorten(signed, folder / "ca.key", seconds)
        return Shown(signed, key)


def shorten(certificate: Path, ca_key: Path, seconds: int) -> None:
    """Sign it anew with an end that openssl's command line cannot say."""
    old = x509.load_pem_x509_certificate(certificate.read_bytes())
    signer = serialization.load_pem_private_key(ca_key.read_bytes(), None)
    now = datetime.now(UTC)
    anew = x509.CertificateBuilder(
        issuer_name=old.issuer,
        subject_name=old.subject,
        public_key=old.public_key(),
        serial_number=old.serial_number,
        not_valid_before=now - timedelta(hours=1),
        not_valid_after=now + timedelta(seconds=seconds),
        extensions=list(old.extensions),
    ).sign(signer, hashes.SHA256())
    certificate.write_bytes(anew.public_bytes(serialization.Encoding.PEM))


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Agents:
    if not can_be_made():
        pytest.skip("no openssl on this machine: client certificates have not been tried")
    return Agents(tmp_path_factory.mktemp("agents"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, agents: Agents) -> Certificates:
    return Certificates.made_in(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def sidecar(agents: Agents, server: Certificates) -> Iterator[Sidecar]:
    agents.certificate("first", "URI:spiffe://example.org/agent/bot")
    mtls = {
        "trusted_ca": str(agents.folder / "agents" / "ca.pem"),
        "certificate_chain": str(server.certificate),
        "private_key": str(server.key),
        "agents": [
            {"match": "spiffe://example.org/agent/*", "agent": "{1}"},
            {"match": "*.agents.test", "agent": "{1}"},
        ],
    }
    with running_sidecar(
        identity=[{"mtls": mtls}, {"static": {"agent": "lone"}}],
        agents=agent("bot") | agent("dns") | agent("lone") | agent("other"),
    ) as running:
        yield running


def context(server: Certificates, shown: Shown | None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(server.ca))
    if shown is not None:
        made.load_cert_chain(shown.certificate, shown.key)
    return made


def called_as(
    sidecar: Sidecar, server: Certificates, shown: Shown | None, **headers: str
) -> str | int:
    """The agent that a call was let through as, or the status that refused it."""
    request = urllib.request.Request(
        f"https://{sidecar.config['listen']['egress']}/openai/v1/chat/completions",
        BODY,
        {"content-type": "application/json"} | headers,
    )
    try:
        with urllib.request.urlopen(request, context=context(server, shown), timeout=60) as answer:
            decision_id = answer.headers["x-budget-decision-id"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    (line,) = (line for line in sidecar.log_lines("decision") if line["decision_id"] == decision_id)
    return str(line["agent"])


@pytest.mark.parametrize(
    ("san", "agent_name"),
    [
        ("URI:spiffe://example.org/agent/bot", "bot"),
        ("DNS:dns.agents.test", "dns"),
        ("URI:spiffe://example.org/agent/dns,DNS:bot.agents.test", "dns"),
        ("URI:spiffe://example.org/agent/bot/deeper", "lone"),
        ("URI:spiffe://elsewhere.org/agent/bot", "lone"),
        ("", "lone"),
        ("URI:spiffe://example.org/agent/unheard-of", 401),
    ],
)
def test_an_agent_is_known_by_the_name_in_its_certificate(
    sidecar: Sidecar, server: Certificates, agents: Agents, san: str, agent_name: str | int
) -> None:
    shown = agents.certificate("one", san)

    assert called_as(sidecar, server, shown) == agent_name


def test_an_official_sdk_calls_with_a_certificate(
    sidecar: Sidecar, server: Certificates, agents: Agents
) -> None:
    shown = agents.certificate("sdk", "URI:spiffe://example.org/agent/bot")
    spent = sidecar.metric("extauthz_budget_spent_usd", scope="agent", name="bot")
    with (
        httpx.Client(verify=context(server, shown)) as client_with,
        openai.OpenAI(
            api_key="none",
            base_url=f"https://{sidecar.config['listen']['egress']}/openai/v1",
            http_client=client_with,
            max_retries=0,
        ) as client,
    ):
        client.chat.completions.create(model=GPT, messages=HELLO, max_tokens=9)

    until(lambda: sidecar.metric("extauthz_budget_spent_usd", scope="agent", name="bot") > spent)


def test_no_header_says_who_holds_a_certificate(
    sidecar: Sidecar, server: Certificates, agents: Agents
) -> None:
    shown = agents.certificate("forger", "URI:spiffe://example.org/agent/bot")
    told = {
        "X-Forwarded-Client-Cert": "URI=spiffe://example.org/agent/other",
        "Authorization": bearer(key_of("other"))["authorization"],
    }

    assert called_as(sidecar, server, shown, **told) == "bot"


@pytest.mark.parametrize("who", ["nobody", "of another CA"])
def test_without_a_certificate_of_the_agents_ca_nothing_is_said_at_all(
    sidecar: Sidecar, server: Certificates, agents: Agents, who: str
) -> None:
    shown = None
    if who == "of another CA":
        shown = agents.certificate("stranger", "URI:spiffe://example.org/agent/bot", ca="others")

    with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
        called_as(sidecar, server, shown)
    with (
        pytest.raises((urllib.error.URLError, ConnectionError)),
        urllib.request.urlopen(f"{sidecar.egress}/openai/v1/models", timeout=10),
    ):
        pass


def test_a_connection_does_not_outlive_its_certificate(
    sidecar: Sidecar, server: Certificates, agents: Agents
) -> None:
    san = "URI:spiffe://example.org/agent/bot"
    shown = agents.certificate("brief", san, seconds=6)
    address, _, port = sidecar.config["listen"]["egress"].partition(":")
    connection = http.client.HTTPSConnection(
        address, int(port), timeout=60, context=context(server, shown)
    )

    def status() -> int:
        path = "/openai/v1/chat/completions"
        connection.request("POST", path, BODY, {"content-type": "application/json"})
        with connection.getresponse() as answer:
            answer.read()
            return answer.status

    with contextlib.closing(connection):
        assert status() == 200
        first = connection.sock
        until(lambda: status() == 401)
        assert connection.sock is first


def test_a_replaced_server_certificate_is_shown_without_a_restart(
    sidecar: Sidecar, server: Certificates, agents: Agents, tmp_path: Path
) -> None:
    shown = agents.certificate("patient", "URI:spiffe://example.org/agent/bot")
    anew = Certificates.made_in(tmp_path)
    for old, new in ((server.key, anew.key), (server.certificate, anew.certificate)):
        beside = old.with_suffix(".next")
        beside.write_bytes(new.read_bytes())
        beside.replace(old)

    def answers() -> bool:
        with contextlib.suppress(urllib.error.URLError, ssl.SSLError):
            return called_as(sidecar, anew, shown) == "bot"
        return False

    until(answers)
