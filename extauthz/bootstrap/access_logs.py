"""The two access logs: gRPC to the sink, which settles, and a file, from which one reconciles."""

from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLog,
    AccessLogFilter,
    AndFilter,
    HeaderFilter,
    LogTypeFilter,
)
from envoy_data_plane.envoy.config.core.v3 import (
    ApiVersion,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    SubstitutionFormatString,
)
from envoy_data_plane.envoy.data.accesslog.v3 import AccessLogType
from envoy_data_plane.envoy.extensions.access_loggers.file.v3 import FileAccessLog
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    CommonGrpcAccessLogConfig,
    HttpGrpcAccessLogConfig,
)
from envoy_data_plane.google.protobuf import Any, Struct

from extauthz.bootstrap.filters import CALL_NAMESPACE, EXT_AUTHZ, REQUEST_ID_KEY
from extauthz.bootstrap.floods import is_marked
from extauthz.bootstrap.settings import EnvoySettings

HOP_CLUSTER = "access_log_hop"

USAGE_NAMESPACE = "extauthz.usage"
"""Where `filter.lua` puts what it read of a response."""

RESPONSE_HEADERS_LOGGED = (
    "content-type",
    "content-encoding",
    "request-id",
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
)

# No path, no method and no header of the request: a client writes into them what it likes. Which
# endpoint was called stands in `authz`, and in the log line of the decision.
FILE_FIELDS = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%6fZ)%",
    "type": "%ACCESS_LOG_TYPE%",
    "request_id": f"%DYNAMIC_METADATA({CALL_NAMESPACE}:{REQUEST_ID_KEY})%",
    "route": "%ROUTE_NAME%",
    "protocol": "%PROTOCOL%",
    "code": "%RESPONSE_CODE%",
    "code_details": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "duration_ms": "%DURATION%",
    # Absent if no byte of the request went to the provider: what the sink reads there as
    # `time_to_first_upstream_tx_byte`.
    "sent_after_us": "%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "upstream": "%UPSTREAM_HOST%",
    "upstream_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "upstream_bytes_sent": "%UPSTREAM_WIRE_BYTES_SENT%",
    "upstream_bytes_received": "%UPSTREAM_WIRE_BYTES_RECEIVED%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "provider_request_id": "%RESP(X-REQUEST-ID?REQUEST-ID)%",
    "authz": f"%DYNAMIC_METADATA({EXT_AUTHZ})%",
    "usage": f"%DYNAMIC_METADATA({USAGE_NAMESPACE})%",
}
"""The names of the file log's fields: read again by reconciliation, so change both together."""


def access_logs(settings: EnvoySettings) -> list[AccessLog]:
    """Both take the same entries: the end of each stream, and a sign of life of open ones."""
    return [
        AccessLog(
            name="envoy.access_loggers.http_grpc",
            filter=_ends_and_signs_of_life(),
            typed_config=Any.pack(_grpc(settings)),
        ),
        AccessLog(
            name="envoy.access_loggers.file",
            filter=_ends_and_signs_of_life(),
            typed_config=Any.pack(_file(settings)),
        ),
    ]


def _ends_and_signs_of_life() -> AccessLogFilter:
    """But of a flood: Envoy counts it, and a line for each of its calls would cost others."""
    of_a_stream = LogTypeFilter(
        types=[AccessLogType.DownstreamEnd, AccessLogType.DownstreamPeriodic]
    )
    no_flood = HeaderFilter(header=is_marked(invert=True))
    return AccessLogFilter(
        and_filter=AndFilter(
            filters=[
                AccessLogFilter(log_type_filter=of_a_stream),
                AccessLogFilter(header_filter=no_flood),
            ]
        )
    )


def _grpc(settings: EnvoySettings) -> HttpGrpcAccessLogConfig:
    return HttpGrpcAccessLogConfig(
        common_config=CommonGrpcAccessLogConfig(
            log_name="egress",
            transport_api_version=ApiVersion.V3,
            grpc_service=GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=HOP_CLUSTER)),
            # An agent that calls back to back meets its own holds until this has passed.
            buffer_flush_interval=settings.access_log_flush,
            buffer_size_bytes=settings.access_log_buffer_bytes,
        ),
        additional_response_headers_to_log=list(RESPONSE_HEADERS_LOGGED),
    )


def _file(settings: EnvoySettings) -> FileAccessLog:
    return FileAccessLog(
        path=str(settings.access_log_file),
        log_format=SubstitutionFormatString(json_format=Struct.from_dict(dict(FILE_FIELDS))),
    )
