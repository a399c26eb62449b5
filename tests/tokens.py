"""An issuer of JWTs of the test's own: RS256, signed by this machine's openssl."""

import base64
import hmac
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _openssl(*words: str | Path, stdin: bytes = b"") -> bytes:
    done = subprocess.run(
        ["openssl", *words], check=True, capture_output=True, input=stdin, timeout=60
    )
    return done.stdout


@dataclass(frozen=True)
class Issuer:
    """Who signs, and with which key."""

    name: str
    key: Path

    @classmethod
    def made_in(cls, directory: Path, name: str) -> "Issuer":
        key = directory / f"{len(list(directory.iterdir()))}.key"
        _openssl("genrsa", "-out", key, "2048")
        return cls(name, key)

    @property
    def jwks(self) -> str:
        """Its public key, as verifiers take it."""
        modulus = _openssl("rsa", "-in", self.key, "-noout", "-modulus").decode().strip()
        n = bytes.fromhex(modulus.removeprefix("Modulus="))
        key = {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "k1", "e": "AQAB", "n": _text(n)}
        return json.dumps({"keys": [key]})

    def token_by_public_key(self, **claims: Any) -> str:
        """One whose signature anybody could make who takes the public key for a secret."""
        public = _openssl("rsa", "-in", self.key, "-pubout")
        _, told, _ = self.token(**claims).split(".")
        signed = f"{_text(json.dumps({'alg': 'HS256', 'kid': 'k1'}).encode())}.{told}"
        return f"{signed}.{_text(hmac.digest(public, signed.encode(), 'sha256'))}"

    def token(self, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token for the audience `extauthz` that holds for ten minutes, unless it says else."""
        told = {"iss": self.name, "aud": "extauthz", "exp": int(time.time()) + 600} | claims
        told = {name: value for name, value in told.items() if value is not None}
        words = [{"alg": "RS256", "kid": "k1"} | (header or {}), told]
        signed = ".".join(_text(json.dumps(word).encode()) for word in words)
        signature = _openssl("dgst", "-sha256", "-sign", self.key, stdin=signed.encode())
        return f"{signed}.{_text(signature)}"
