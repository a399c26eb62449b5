"""Clusters on this host: Check, the access log's hop and its sink, all on unix sockets."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterDiscoveryType,
)
from envoy_data_plane.envoy.config.core.v3 import Address, Http2ProtocolOptions, Pipe
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.google.protobuf import Any

from extauthz.bootstrap.access_logs import HOP_CLUSTER
from extauthz.bootstrap.filters import CHECK_CLUSTER
from extauthz.bootstrap.listeners import SINK_CLUSTER
from extauthz.bootstrap.settings import EnvoySettings

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

_LOCAL_CONNECT_TIMEOUT = timedelta(milliseconds=250)


def local_clusters(settings: EnvoySettings) -> list[Cluster]:
    """Check over HTTP/2; the logger to its hop over HTTP/2; the hop to the sink byte by byte.

    No health checks: they would race the sink's own return (measured: up to 65 % lost with them).
    No HTTP/2 keep-alive either: gRPC servers answer its pings on idle connections with GOAWAY
    (too_many_pings), and a unix socket cannot be half open.
    """
    return [
        _unix(CHECK_CLUSTER, settings.check_sockets, settings, grpc=True),
        _unix(HOP_CLUSTER, [settings.hop_socket], settings, grpc=True),
        _unix(SINK_CLUSTER, [settings.access_log_socket], settings, grpc=False),
    ]


def assignment(cluster: str, endpoints: Sequence[Endpoint]) -> ClusterLoadAssignment:
    """The endpoints of a cluster, all in one place and of equal weight."""
    return ClusterLoadAssignment(
        cluster_name=cluster,
        endpoints=[
            LocalityLbEndpoints(
                lb_endpoints=[LbEndpoint(endpoint=endpoint) for endpoint in endpoints]
            )
        ],
    )


def circuit_breakers(settings: EnvoySettings) -> CircuitBreakers:
    """Above what Check admits: the default of 1024 would refuse calls that have a reservation."""
    limit = settings.max_upstream_requests
    return CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                max_connections=limit,
                max_pending_requests=limit,
                max_requests=limit,
                max_retries=32,
            )
        ]
    )


def _unix(name: str, sockets: Sequence[Path], settings: EnvoySettings, *, grpc: bool) -> Cluster:
    http2 = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(
            http2_protocol_options=Http2ProtocolOptions()
        )
    )
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=_LOCAL_CONNECT_TIMEOUT,
        load_assignment=assignment(
            name, [Endpoint(address=Address(pipe=Pipe(path=str(path)))) for path in sockets]
        ),
        circuit_breakers=circuit_breakers(settings),
        typed_extension_protocol_options={HTTP_OPTIONS: Any.pack(http2)} if grpc else {},
    )
