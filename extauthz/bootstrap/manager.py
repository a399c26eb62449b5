"""The one HTTP connection manager: every listener that takes calls of agents is made by it.

A second way in with fewer rules would be the way round the budget, so there is no second recipe:
a listener chooses its routes and its name in the statistics, nothing else.
"""

from datetime import timedelta

from envoy_data_plane.envoy.config.core.v3 import (
    CidrRange,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    HttpProtocolOptionsHeadersWithUnderscoresAction,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerCodecType,
    HttpConnectionManagerHcmAccessLogOptions,
    HttpConnectionManagerInternalAddressConfig,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerServerHeaderTransformation,
)
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation,
)
from envoy_data_plane.google.protobuf import Any

from extauthz.bootstrap.access_logs import access_logs
from extauthz.bootstrap.filters import http_filters
from extauthz.bootstrap.headers import from_agents
from extauthz.bootstrap.local_replies import local_replies
from extauthz.bootstrap.settings import EnvoySettings

# Of clients that send a byte now and then, to hold a connection and a buffer.
_REQUEST_HEADERS_TIMEOUT = timedelta(seconds=10)
_REQUEST_TIMEOUT = timedelta(minutes=2)  # for 32 MiB that are 2.3 Mbit/s, and what Check takes
_CONNECTION_IDLE_TIMEOUT = timedelta(minutes=10)
_STREAMS_MAX = 100
"""Of one connection: the least that RFC 9113 (6.5.2) recommends. A client lets more wait."""
_KIB = 1024
_NOBODY = CidrRange(address_prefix="192.0.2.255", prefix_len=32)
"""An address of TEST-NET-1 (RFC 5737): no peer has it. An empty list would mean Envoy's default,
which was all of RFC 1918 before Envoy 1.33."""


def http_connection_manager(
    settings: EnvoySettings, *, stat_prefix: str, routes: RouteConfiguration
) -> HttpConnectionManager:
    """Everything from the agent's bytes to the router; no upgrade_configs, so no CONNECT either."""
    return HttpConnectionManager(
        codec_type=HttpConnectionManagerCodecType.AUTO,
        stat_prefix=stat_prefix,
        route_config=routes,
        http_filters=http_filters(settings),
        http2_protocol_options=Http2ProtocolOptions(
            max_concurrent_streams=_STREAMS_MAX,
            # What one connection can have under way that no filter has asked for yet.
            initial_stream_window_size=1024 * _KIB,
            initial_connection_window_size=2 * 1024 * _KIB,
        ),
        common_http_protocol_options=HttpProtocolOptions(
            idle_timeout=_CONNECTION_IDLE_TIMEOUT,
            max_connection_duration=(
                settings.certified_connection_max if settings.client_certificates else None
            ),
            max_headers_count=settings.max_headers,
            # A server behind a gateway may read `x_api_key` as `x-api-key`. Dropped, not refused:
            # Check and the provider both see the request without it, and no SDK breaks.
            headers_with_underscores_action=(
                HttpProtocolOptionsHeadersWithUnderscoresAction.DROP_HEADER
            ),
        ),
        # The provider's own `server` header, or none.
        server_header_transformation=HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH,
        max_request_headers_kb=settings.max_header_kb,
        stream_idle_timeout=settings.stream_idle_timeout,
        request_headers_timeout=_REQUEST_HEADERS_TIMEOUT,
        request_timeout=_REQUEST_TIMEOUT,
        access_log=access_logs(settings),
        access_log_options=HttpConnectionManagerHcmAccessLogOptions(
            access_log_flush_interval=settings.access_log_period
        ),
        # The peer is who is at the other end of the connection, whatever a header says.
        use_remote_address=True,
        skip_xff_append=True,
        early_header_mutation_extensions=[
            TypedExtensionConfig(
                name="envoy.http.early_header_mutation.header_mutation",
                typed_config=Any.pack(HeaderMutation(mutations=from_agents())),
            )
        ],
        internal_address_config=HttpConnectionManagerInternalAddressConfig(cidr_ranges=[_NOBODY]),
        # A path has one spelling before routes and Check read it.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=(
            HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST
        ),
        local_reply_config=local_replies(settings),
    )
