"""TLS towards agents, each of whom shows a certificate that Envoy verifies."""

from envoy_data_plane.envoy.config.core.v3 import (
    ApiVersion,
    ConfigSource,
    PathConfigSource,
    TransportSocket,
    WatchedDirectory,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    DownstreamTlsContext,
    SdsSecretConfig,
)
from envoy_data_plane.google.protobuf import Any

from extauthz.bootstrap.settings import ClientCertificates


def client_certificates(required: ClientCertificates | None) -> TransportSocket | None:
    """TLS towards agents, each of whom has to show a certificate of the agents' CA."""
    if required is None:
        return None
    context = DownstreamTlsContext(
        common_tls_context=CommonTlsContext(
            tls_certificate_sds_secret_configs=[_secret("egress-certificate", required)],
            validation_context_sds_secret_config=_secret("egress-agents-ca", required),
            alpn_protocols=["h2", "http/1.1"],
        ),
        require_client_certificate=True,
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def _secret(name: str, required: ClientCertificates) -> SdsSecretConfig:
    """A file of Envoy's secret discovery, which names files that are read anew when replaced."""
    folder = required.secrets
    return SdsSecretConfig(
        name=name,
        sds_config=ConfigSource(
            resource_api_version=ApiVersion.V3,
            path_config_source=PathConfigSource(
                path=str(folder / f"{name}.yaml"),
                watched_directory=WatchedDirectory(path=str(folder)),
            ),
        ),
    )
