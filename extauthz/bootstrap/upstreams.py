"""A provider as Envoy calls it: its address, its TLS, its credential."""

from datetime import timedelta
from pathlib import Path

from betterproto2 import Casing
from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    ClusterCustomClusterType,
    ClusterDiscoveryType,
    UpstreamConnectionOptions,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    ApiVersion,
    ConfigSource,
    DataSource,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    PathConfigSource,
    SocketAddress,
    TcpKeepalive,
    TransportSocket,
    TypedExtensionConfig,
    WatchedDirectory,
)
from envoy_data_plane.envoy.config.core.v3 import HttpProtocolOptions as CommonHttpOptions
from envoy_data_plane.envoy.config.endpoint.v3 import Endpoint
from envoy_data_plane.envoy.extensions.clusters.common.dns.v3 import DnsLookupFamily
from envoy_data_plane.envoy.extensions.clusters.dns.v3 import DnsCluster
from envoy_data_plane.envoy.extensions.filters.http.aws_request_signing.v3 import (
    AwsRequestSigning,
)
from envoy_data_plane.envoy.extensions.filters.http.credential_injector.v3 import (
    CredentialInjector,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import (
    HeaderMutation,
    Mutations,
)
from envoy_data_plane.envoy.extensions.filters.http.upstream_codec.v3 import UpstreamCodec
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.http.injected_credentials.generic.v3 import Generic
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    GenericSecret,
    SdsSecretConfig,
    Secret,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsAutoHttpConfig,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Any

from extauthz.bootstrap.clusters import HTTP_OPTIONS, assignment, circuit_breakers
from extauthz.bootstrap.headers import to_providers
from extauthz.bootstrap.printing import dump
from extauthz.bootstrap.settings import (
    AwsSigning,
    Credential,
    EnvironmentSource,
    EnvoySettings,
    FileSource,
    ProviderSettings,
    TokenIssuer,
    Upstream,
)
from extauthz.bootstrap.tokens import issuer_cluster

_IDLE_TIMEOUT = timedelta(seconds=60)
"""Shorter than a provider's own: a connection that it closes as a request arrives is a reset after
sending, which may have been billed and so is never retried."""


def provider_cluster(settings: EnvoySettings, provider: ProviderSettings) -> Cluster:
    """The cluster behind a provider's route."""
    upstream = provider.upstream
    address = Address(socket_address=SocketAddress(address=upstream.host, port_value=upstream.port))
    return Cluster(
        name=provider.cluster,
        type=ClusterDiscoveryType.STATIC if upstream.is_ip else None,
        cluster_type=None if upstream.is_ip else resolved(),
        connect_timeout=settings.connect_timeout,
        load_assignment=assignment(provider.cluster, [Endpoint(address=address)]),
        circuit_breakers=circuit_breakers(settings),
        # A stream may be silent for minutes; what sits between forgets silent connections.
        upstream_connection_options=UpstreamConnectionOptions(
            tcp_keepalive=TcpKeepalive(keepalive_time=60, keepalive_interval=15)
        ),
        transport_socket=tls(provider.ca_file, upstream) if upstream.tls else None,
        typed_extension_protocol_options={HTTP_OPTIONS: Any.pack(_http(provider, upstream))},
    )


def token_clusters(settings: EnvoySettings) -> list[Cluster]:
    """Where the keys of remote issuers are fetched."""
    return [
        _issuer(issuer_cluster(n), issuer, settings)
        for n, issuer in enumerate(settings.token_issuers)
        if issuer.jwks_url
    ]


def _issuer(name: str, issuer: TokenIssuer, settings: EnvoySettings) -> Cluster:
    upstream = issuer.upstream
    address = Address(socket_address=SocketAddress(address=upstream.host, port_value=upstream.port))
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STATIC if upstream.is_ip else None,
        cluster_type=None if upstream.is_ip else resolved(),
        connect_timeout=settings.connect_timeout,
        load_assignment=assignment(name, [Endpoint(address=address)]),
        transport_socket=tls(issuer.ca_file, upstream) if upstream.tls else None,
    )


def resolved() -> ClusterCustomClusterType:
    """A name to resolve, as what was called LOGICAL_DNS (docs: "DNS cluster").

    All addresses are one endpoint, so that connections live on when a large provider's answer
    rotates. IPv6 first (the default) would fail where a container has no way out over IPv6.
    """
    return ClusterCustomClusterType(
        name="envoy.clusters.dns",
        typed_config=Any.pack(
            DnsCluster(
                respect_dns_ttl=True,
                dns_lookup_family=DnsLookupFamily.V4_PREFERRED,
                all_addresses_in_single_endpoint=True,
            )
        ),
    )


def secret(provider: ProviderSettings) -> Secret | None:
    """The static secret of a provider whose credential comes from Envoy's environment."""
    match provider.credential:
        case Credential(source=EnvironmentSource(variable=variable)):
            return Secret(
                name=provider.secret_name,
                generic_secret=GenericSecret(secret=DataSource(environment_variable=variable)),
            )
        case _:
            return None


def secret_file(provider: ProviderSettings, key_file: Path) -> str:
    """The SDS file of a `FileSource`: it says where the key stands, the key is not in it."""
    source = DataSource(
        filename=str(key_file), watched_directory=WatchedDirectory(path=str(key_file.parent))
    )
    resource = Any.pack(
        Secret(name=provider.secret_name, generic_secret=GenericSecret(secret=source))
    )
    return dump({"resources": [resource.to_dict(casing=Casing.SNAKE)]})


def _http(provider: ProviderSettings, upstream: Upstream) -> HttpProtocolOptions:
    options = HttpProtocolOptions(
        common_http_protocol_options=CommonHttpOptions(idle_timeout=_IDLE_TIMEOUT),
        http_filters=_upstream_filters(provider),
    )
    if upstream.tls:
        # ALPN decides between HTTP/2 and HTTP/1.1.
        options.auto_config = HttpProtocolOptionsAutoHttpConfig(
            http_protocol_options=Http1ProtocolOptions(),
            http2_protocol_options=Http2ProtocolOptions(),
        )
    else:
        options.explicit_http_config = HttpProtocolOptionsExplicitHttpConfig(
            http_protocol_options=Http1ProtocolOptions()
        )
    return options


def _upstream_filters(provider: ProviderSettings) -> list[HttpFilter]:
    """Off with what the agent sent, on with the credential, out.

    These run for every attempt, after Check and the router, so Check sees the agent's own key and
    nothing before the provider's connection sees the provider's.
    """
    mutations = to_providers(provider.allowed_headers)
    clean = HeaderMutation(mutations=Mutations(request_mutations=mutations))
    filters = [
        HttpFilter(name="envoy.filters.http.header_mutation", typed_config=Any.pack(clean)),
    ]
    match provider.credential:
        case Credential() as credential:
            injector = _injector(provider, credential)
            filters.append(
                HttpFilter(
                    name="envoy.filters.http.credential_injector", typed_config=Any.pack(injector)
                )
            )
        case AwsSigning(region=region, service=service):
            # Last of all: the signature is of the body as it was edited, and of these headers.
            signing = AwsRequestSigning(service_name=service, region=region)
            filters.append(
                HttpFilter(
                    name="envoy.filters.http.aws_request_signing", typed_config=Any.pack(signing)
                )
            )
    filters.append(
        HttpFilter(name="envoy.filters.http.upstream_codec", typed_config=Any.pack(UpstreamCodec()))
    )
    return filters


def _injector(provider: ProviderSettings, credential: Credential) -> CredentialInjector:
    return CredentialInjector(
        overwrite=True,
        credential=TypedExtensionConfig(
            name="envoy.http.injected_credentials.generic",
            typed_config=Any.pack(
                Generic(
                    credential=_secret_config(provider, credential),
                    header=credential.header,
                    header_value_prefix=credential.prefix,
                )
            ),
        ),
    )


def _secret_config(provider: ProviderSettings, credential: Credential) -> SdsSecretConfig:
    match credential.source:
        case EnvironmentSource():
            return SdsSecretConfig(name=provider.secret_name)
        case FileSource(path=path):
            return SdsSecretConfig(
                name=provider.secret_name,
                sds_config=ConfigSource(
                    resource_api_version=ApiVersion.V3,
                    path_config_source=PathConfigSource(
                        path=str(path), watched_directory=WatchedDirectory(path=str(path.parent))
                    ),
                ),
            )


def tls(ca_file: Path, upstream: Upstream) -> TransportSocket:
    """The certificate must be for this host: a CA trusts everyone that it ever signed."""
    san_type = (
        SubjectAltNameMatcherSanType.IP_ADDRESS
        if upstream.is_ip
        else SubjectAltNameMatcherSanType.DNS
    )
    context = UpstreamTlsContext(
        common_tls_context=CommonTlsContext(
            validation_context=CertificateValidationContext(
                trusted_ca=DataSource(filename=str(ca_file)),
                match_typed_subject_alt_names=[
                    SubjectAltNameMatcher(
                        san_type=san_type, matcher=StringMatcher(exact=upstream.host)
                    )
                ],
            )
        ),
        sni="" if upstream.is_ip else upstream.host,
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))
