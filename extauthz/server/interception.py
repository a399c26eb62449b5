"""The local CA of transparent interception, and the certificates that Envoy shows in its name.

The CA may sign for the configured host names and for no others (name constraints, RFC 5280, section
4.2.1.10), so a stolen key opens these to whoever trusts it, not the rest of the network.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from extauthz.config import Config, ConfigError
from extauthz.errors import OperatorError
from extauthz.server.data_dir import DataDir

_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=397)  # what clients accept of public CAs; each start issues new ones
_BEFORE = timedelta(hours=1)  # for clients whose clock is behind


class AuthorityError(OperatorError):
    """The CA cannot be made or used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A folder with `ca.pem`, for everybody, and `ca.key`, which is its owner's alone."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """What agents have to trust."""
        return self.folder / "ca.pem"

    @property
    def key(self) -> Path:
        """What nobody else may have."""
        return self.folder / "ca.key"

    def create(self, hosts: list[str]) -> None:
        """Make a CA that may sign for these host names; one that is there is never overwritten.

        Raises:
            AuthorityError: there is one already, or the folder may not be written.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "extauthz local CA")])
        public = key.public_key()
        certificate = (
            _builder(name, name, public, _CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.NameConstraints([x509.DNSName(host) for host in hosts], None), critical=True
            )
            .sign(key, hashes.SHA256())
        )
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(self.key, _pem(key), 0o600, exclusive=True)
            _write(self.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        except FileExistsError:
            raise AuthorityError(
                f"{self.key} is there already and is not overwritten: agents trust it. For a new "
                "one, move it away and give agents the new ca.pem"
            ) from None
        except OSError as error:
            raise AuthorityError(f"{self.folder} cannot be written ({error.strerror})") from error

    def hosts(self) -> tuple[str, ...]:
        """The host names that it may sign for.

        Raises:
            AuthorityError: there is no CA, or what is there is none of ours.
        """
        certificate, _ = self._load()
        try:
            allowed = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            raise AuthorityError(
                f"{self.certificate} may sign for every host: make one with 'extauthz ca init'"
            ) from None
        return tuple(str(name.value) for name in allowed.permitted_subtrees or ())

    def issue(self, host: str, certificate: Path, key_file: Path) -> None:
        """Write a certificate for a host name, and its key."""
        issuer, issuer_key = self._load()
        key = ec.generate_private_key(ec.SECP256R1())
        # (a common name has at most 64 characters, and no client reads it)
        issued = (
            _builder(x509.Name([]), issuer.subject, key.public_key(), _LEAF_LIFE)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
                critical=False,
            )
            .sign(issuer_key, hashes.SHA256())
        )
        _write(key_file, _pem(key), 0o600)
        _write(certificate, issued.public_bytes(serialization.Encoding.PEM), 0o600)

    def _load(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        except FileNotFoundError as error:
            raise AuthorityError(
                f"there is no {error.filename}: make the CA with 'extauthz ca init'"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise AuthorityError(f"the CA in {self.folder} cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"{self.key} is no key that 'extauthz ca init' has made")
        if key.public_key() != certificate.public_key():
            raise AuthorityError(f"{self.key} is not the key of {self.certificate}")
        return certificate, key


def authority_of(config: Config) -> Authority:
    """The CA that a config names.

    Raises:
        ConfigError: it has no `intercept` block.
    """
    if config.intercept is None:
        raise ConfigError("config", ["intercept: is missing, so there is nothing to intercept"])
    return Authority(config.intercept.ca or DataDir(config.data_dir).ca)


def missing_authority(config: Config) -> Iterator[str]:
    """What `up` needs of the CA and does not find."""
    try:
        allowed = authority_of(config).hosts()
    except AuthorityError as error:
        yield f"intercept.ca: {error}"
        return
    for host, provider in config.intercepted_hosts():
        if host not in allowed:
            yield (
                f"intercept.hosts.{provider}: the CA may not sign for {host}: move it away and "
                "make a new one with 'extauthz ca init'"
            )


def issue_certificates(config: Config, data_dir: DataDir) -> None:
    """Write a new certificate for each intercepted host name."""
    authority, folder = authority_of(config), data_dir.envoy_certificates
    for host, _ in config.intercepted_hosts():
        authority.issue(host, folder / f"{host}.pem", folder / f"{host}.key")


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + life)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    """A CA signs certificates, a server its handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int, *, exclusive: bool = False) -> None:
    """Write a file that never has wider rights than these."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if exclusive else os.O_TRUNC)
    descriptor = os.open(path, flags, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
