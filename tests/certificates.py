"""A CA of the test's own and a server's certificate from it, made by this machine's openssl."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


def can_be_made() -> bool:
    return shutil.which("openssl") is not None


@dataclass(frozen=True)
class Certificates:
    """What one server has, and the CA that its clients have to trust."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def made_in(cls, directory: Path, name: str = "IP:127.0.0.1") -> "Certificates":
        """A new CA, and a certificate for `name`, as openssl writes alternative names."""
        ca, ca_key = directory / "ca.pem", directory / "ca.key"
        request, certificate, key = (directory / f"server.{end}" for end in ("csr", "pem", "key"))
        alternative = directory / "names"
        alternative.write_text(f"subjectAltName={name}\n")
        new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        _openssl(*new, "-x509", "-days", "2", "-subj", "/CN=a CA", "-keyout", ca_key, "-out", ca)
        _openssl(*new, "-subj", "/CN=a server", "-keyout", key, "-out", request)
        signed_by = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", alternative)
        _openssl("x509", "-req", "-in", request, "-days", "2", *signed_by, "-out", certificate)
        return cls(ca, certificate, key)

    @property
    def server_settings(self) -> dict[str, str]:
        """For a Redis that asks its clients for no certificate."""
        return {
            "tls-cert-file": str(self.certificate),
            "tls-key-file": str(self.key),
            "tls-ca-cert-file": str(self.ca),
            "tls-auth-clients": "no",
        }


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
