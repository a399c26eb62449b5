"""What the rendering needs to know, as plain values: no Envoy types here, so importing is cheap."""

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

SYSTEM_CA_FILE = Path("/etc/ssl/certs/ca-certificates.crt")
"""The trust bundle of Debian, Ubuntu and Alpine; elsewhere `ProviderSettings.ca_file` names it."""

MIB = 1024 * 1024
_PATH_MAX = 107  # sun_path of a unix socket holds 108 bytes with its closing zero
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[a-z0-9-]+")


class SettingsError(ValueError):
    """Settings that no correct Envoy configuration could be rendered from."""


@dataclass(frozen=True, slots=True)
class EnvironmentSource:
    """The credential is the value of a variable in *Envoy's* environment; Python never reads it.

    It is read once, when Envoy starts; without it Envoy does not start.
    """

    variable: str

    def __post_init__(self) -> None:
        if not _VARIABLE.fullmatch(self.variable):
            raise SettingsError(f"{self.variable!r} cannot be the name of an environment variable")


@dataclass(frozen=True, slots=True)
class FileSource:
    """The credential comes by a file in Envoy's SDS format, as `secret_file` writes it.

    The file must be there when Envoy starts; it holds one secret, `ProviderSettings.secret_name`.
    Envoy reads it again whenever anything is moved into its folder (docs: "Secret discovery
    service (SDS)").
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_absolute():
            raise SettingsError(f"{self.path}: the path of a credential is absolute")


@dataclass(frozen=True, slots=True)
class Credential:
    """How the provider's own key is put on the wire, by Envoy, in place of the agent's."""

    source: EnvironmentSource | FileSource
    header: str = "authorization"
    prefix: str = "Bearer "

    def __post_init__(self) -> None:
        if not _HEADER.fullmatch(self.header):
            raise SettingsError(f"{self.header!r} is not a header name in lower case")


@dataclass(frozen=True, slots=True)
class AwsSigning:
    """Envoy signs requests (SigV4) with the AWS credentials that it finds.

    Those of its environment come first, then what the host gives to AWS's own tools.
    """

    region: str
    service: str = "bedrock"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.region):
            raise SettingsError(f"{self.region!r} is not an AWS region, such as us-east-1")


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a provider listens: the parts of its URL."""

    tls: bool
    host: str
    port: int
    base_path: str  # "" or "/v1": no slash at the end

    @property
    def is_ip(self) -> bool:
        """Whether the host is an address and not a name to resolve."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def authority(self) -> str:
        """The host header for this upstream; the port is left out where the scheme implies it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Whose tokens Envoy verifies: with keys from a file, read when it starts, or from a URL."""

    issuer: str
    audiences: tuple[str, ...]
    jwks_file: Path | None = None
    jwks_url: str = ""
    ca_file: Path = SYSTEM_CA_FILE

    def __post_init__(self) -> None:
        if (self.jwks_file is None) == (not self.jwks_url):
            raise SettingsError(f"issuer {self.issuer}: its keys are in a file or at a URL")
        if not self.audiences:
            # Envoy would take tokens for anybody (docs: JwtProvider.audiences).
            raise SettingsError(f"issuer {self.issuer}: its tokens are for at least one audience")

    @property
    def upstream(self) -> Upstream:
        """The parts of its URL."""
        parts = urlsplit(self.jwks_url)
        tls = parts.scheme == "https"
        return Upstream(tls, parts.hostname or "", parts.port or (443 if tls else 80), parts.path)


@dataclass(frozen=True, slots=True)
class ClientCertificates:
    """Agents show a certificate; `secrets` has the SDS files that name Envoy's own and the CA."""

    secrets: Path


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One provider: agents call `/<name>/...`, Envoy calls `<url>/...`."""

    name: str
    api: str
    url: str
    credential: Credential | AwsSigning | None = None
    ca_file: Path = SYSTEM_CA_FILE
    allowed_headers: tuple[str, ...] = ()  # of those that say who pays
    key_parameter: tuple[str, str] | None = None  # in the query, and the header that it becomes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise SettingsError(
                f"provider {self.name!r}: a name has lower case letters, digits and inner hyphens, "
                "at most 63, because it is a part of the path"
            )
        self.upstream  # noqa: B018 - raises what is wrong with the URL

    @property
    def upstream(self) -> Upstream:
        """The parts of `url`."""
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise SettingsError(f"provider {self.name}: {self.url!r}: {error}") from error
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SettingsError(
                f"provider {self.name}: {self.url!r}: write https://host[:port][/path]"
            )
        if parts.username is not None or parts.query or parts.fragment:
            raise SettingsError(
                f"provider {self.name}: an upstream URL has no user, query or fragment; "
                "keys belong into 'credential'"
            )
        tls = parts.scheme == "https"
        return Upstream(
            tls=tls,
            host=parts.hostname,
            port=port if port is not None else (443 if tls else 80),
            base_path=parts.path.rstrip("/"),
        )

    @property
    def cluster(self) -> str:
        """The name of its Envoy cluster: prefixed, so that no provider can be named `check`."""
        return f"provider_{self.name}"

    @property
    def secret_name(self) -> str:
        """The name of its secret in Envoy, and in the SDS file of a `FileSource`."""
        return f"{self.name}-credential"


@dataclass(frozen=True, slots=True)
class InterceptedHost:
    """A provider's host name, with the certificate that this host shows in its place."""

    name: str
    provider: str
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySettings:
    """Everything that `render` needs; the defaults are those of `extauthz.yaml`."""

    egress_host: str = "127.0.0.1"
    egress_port: int = 10000
    providers: tuple[ProviderSettings, ...]
    intercept_host: str = "127.0.0.1"
    intercept_port: int = 10443
    intercepted: tuple[InterceptedHost, ...] = ()  # none: there is no such listener

    check_sockets: tuple[Path, ...]  # one for each service process
    access_log_socket: Path  # where the access-log sink listens
    hop_socket: Path  # Envoy's own: between its access logger and the sink
    admin_socket: Path
    access_log_file: Path

    token_issuers: tuple[TokenIssuer, ...] = ()
    client_certificates: ClientCertificates | None = None
    # Envoy verifies a certificate when the connection is made: within this time, one of a CA that
    # was replaced is asked for anew. Calls under way are ended first.
    certified_connection_max: timedelta = timedelta(minutes=10)
    has_strangers: bool = True  # False: whoever reaches the listener is an agent

    check_timeout: timedelta = timedelta(seconds=2)  # above `hold_wait`, which Check may spend
    max_stream_duration: timedelta = timedelta(hours=1)
    stream_idle_timeout: timedelta = timedelta(minutes=10)  # reasoning models think silently
    connect_timeout: timedelta = timedelta(seconds=5)
    access_log_flush: timedelta = timedelta(milliseconds=200)
    access_log_period: timedelta = timedelta(seconds=60)  # a lease must exceed three of these
    drain: timedelta = timedelta(seconds=30)

    max_body_bytes: int = 32 * MIB
    access_log_buffer_bytes: int = 16 * MIB  # per worker, while the sink is away; beyond: dropped
    max_upstream_requests: int = 10_000  # above what Check admits, or Envoy refuses in its place
    max_agent_connections: int = 10_000
    max_heap_bytes: int = 2048 * MIB

    node_id: str = "egress"
    node_cluster: str = "extauthz"
    max_header_kb: int = 96
    max_headers: int = 200

    def __post_init__(self) -> None:
        names = [provider.name for provider in self.providers]
        if not names or len(set(names)) != len(names):
            raise SettingsError("there is at least one provider, and each has its own name")
        hosts = [host.name for host in self.intercepted]
        if len(set(hosts)) < len(hosts) or not {one.provider for one in self.intercepted} <= {
            *names
        }:
            raise SettingsError("an intercepted host is that of one provider")
        if not self.check_sockets:
            raise SettingsError("there is at least one Check socket")
        sockets = (
            *self.check_sockets,
            self.access_log_socket,
            self.hop_socket,
            self.admin_socket,
        )
        if len(set(sockets)) != len(sockets):
            raise SettingsError("every unix socket has its own path")
        for path in sockets:
            if not path.is_absolute() or len(os.fsencode(path)) > _PATH_MAX:
                raise SettingsError(
                    f"{path}: the path of a unix socket is absolute and at most {_PATH_MAX} bytes"
                )
        if not self.access_log_file.is_absolute():
            raise SettingsError(f"{self.access_log_file}: the path of the access log is absolute")
        if self.check_timeout <= timedelta(0):
            # Envoy reads a timeout of 0 as "wait for ever" (docs: GrpcService.timeout).
            raise SettingsError("the Check timeout is above zero")
