"""A CA that was replaced: new connections are judged by the other one, old ones end in time."""

import http.client
import ssl
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import Certificates, can_be_made

pytestmark = pytest.mark.skipif(not can_be_made(), reason="no openssl on this machine")


class Egress:
    """An Envoy that trusts one CA of agents, which can be replaced."""

    def __init__(self, folder: Path) -> None:
        self.secrets, self.trusted = folder / "secrets", folder / "trusted"
        for one in (self.secrets, self.trusted):
            one.mkdir()
        self.server, self.old, self.new = (
            Certificates.made_in(self._made(folder / name)) for name in ("server", "old", "new")
        )
        self.trust(self.old)
        certificate = {
            "certificate_chain": {"filename": str(self.server.certificate)},
            "private_key": {"filename": str(self.server.key)},
        }
        self._write("egress-certificate", {"tls_certificate": certificate})
        agents_ca = {
            "trusted_ca": {"filename": str(self.trusted / "ca.pem")},
            "watched_directory": {"path": str(self.trusted)},
        }
        self._write("egress-agents-ca", {"validation_context": agents_ca})
        self.rig: Any = None

    @staticmethod
    def _made(folder: Path) -> Path:
        folder.mkdir()
        return folder

    def _write(self, name: str, secret: dict[str, Any]) -> None:
        kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
        resource = {"@type": kind, "name": name, **secret}
        (self.secrets / f"{name}.yaml").write_text(yaml.safe_dump({"resources": [resource]}))

    def trust(self, ca: Certificates) -> None:
        beside = self.trusted / "next.pem"
        beside.write_bytes(ca.ca.read_bytes())
        beside.rename(self.trusted / "ca.pem")

    def context(self, shown: Certificates) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(self.server.ca))
        made.load_cert_chain(shown.certificate, shown.key)
        return made

    def connection(self, context: ssl.SSLContext) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.rig.port, timeout=15, context=context)

    def is_let_in(self, context: ssl.SSLContext) -> bool:
        """Whether a new connection is."""
        with closing(self.connection(context)) as connection:
            try:
                return status(connection) == 200
            except (ssl.SSLError, ConnectionError, http.client.HTTPException):
                return False


def status(connection: http.client.HTTPSConnection) -> int:
    connection.request("POST", "/openai/v1/chat/completions", b"{}")
    with connection.getresponse() as answer:
        answer.read()
        return answer.status


@pytest.fixture(scope="module")
def egress(start_rig: Any, tmp_path_factory: pytest.TempPathFactory) -> Egress:
    from extauthz.bootstrap import ClientCertificates, ProviderSettings  # noqa: PLC0415

    egress = Egress(tmp_path_factory.mktemp("tls"))
    egress.rig = start_rig(
        lambda provider, _folder: (
            ProviderSettings("openai", "openai", f"http://127.0.0.1:{provider.port}"),
        ),
        client_certificates=ClientCertificates(egress.secrets),
        certified_connection_max=timedelta(seconds=2),
    )
    return egress


def test_a_certificate_of_a_replaced_ca_is_let_in_no_longer_nor_is_its_connection(
    egress: Egress,
) -> None:
    old, new = egress.context(egress.old), egress.context(egress.new)
    assert egress.is_let_in(old)
    assert not egress.is_let_in(new)

    with closing(egress.connection(old)) as standing:
        standing.auto_open = 0
        standing.connect()
        assert status(standing) == 200
        egress.trust(egress.new)
        egress.rig.wait_for(lambda: egress.is_let_in(new), "the new CA to be read")
        assert not egress.is_let_in(old)

        def has_ended() -> bool:
            try:
                return status(standing) != 200
            except (ConnectionError, http.client.HTTPException):
                return True

        egress.rig.wait_for(has_ended, "the end of the connection that stood")

    assert egress.is_let_in(new)
    assert not egress.is_let_in(old)


def test_a_session_that_the_replaced_ca_has_opened_cannot_be_resumed(egress: Egress) -> None:
    egress.trust(egress.old)
    context = egress.context(egress.old)
    egress.rig.wait_for(lambda: egress.is_let_in(context), "the old CA to be read again")
    with closing(egress.connection(context)) as before:
        assert status(before) == 200  # (after which a session is there to be resumed)
        session = before.sock.session
    assert resumed(egress, context, session)
    egress.trust(egress.new)
    egress.rig.wait_for(lambda: not egress.is_let_in(context), "the new CA to be read")

    with pytest.raises((ssl.SSLError, ConnectionError)):
        resumed(egress, context, session)


def resumed(egress: Egress, context: ssl.SSLContext, session: ssl.SSLSession) -> bool:
    """Whether a call is answered by a resumed session."""
    with closing(egress.connection(context)) as connection:
        raw = connection._create_connection(("127.0.0.1", egress.rig.port), 15)  # type: ignore[attr-defined]
        connection.sock = context.wrap_socket(raw, server_hostname="127.0.0.1", session=session)
        assert status(connection) == 200
        return bool(connection.sock.session_reused)
