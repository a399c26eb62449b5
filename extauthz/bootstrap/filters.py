"""The HTTP filters of every listener, in the order in which a request passes them."""

from importlib import resources

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutationRules
from envoy_data_plane.envoy.config.core.v3 import (
    ApiVersion,
    DataSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    RuntimeFeatureFlag,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.extensions.compression.brotli.decompressor.v3 import Brotli
from envoy_data_plane.envoy.extensions.compression.gzip.decompressor.v3 import Gzip
from envoy_data_plane.envoy.extensions.compression.zstd.decompressor.v3 import Zstd
from envoy_data_plane.envoy.extensions.filters.http.decompressor.v3 import (
    Decompressor,
    DecompressorCommonDirectionConfig,
    DecompressorRequestDirectionConfig,
    DecompressorResponseDirectionConfig,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import BufferSettings, ExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import HeaderMutation
from envoy_data_plane.envoy.extensions.filters.http.header_to_metadata.v3 import (
    Config,
    ConfigKeyValuePair,
    ConfigRule,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.type.matcher.v3 import (
    MetadataMatcher,
    MetadataMatcherPathSegment,
    RegexMatcher,
    StringMatcher,
    ValueMatcher,
)
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
from envoy_data_plane.google.protobuf import Any

from extauthz.bootstrap.floods import flood_filters
from extauthz.bootstrap.settings import EnvoySettings
from extauthz.bootstrap.tokens import JWT_AUTHN, token_filters

EXT_AUTHZ = "envoy.filters.http.ext_authz"
"""The filter's name is also the namespace of the metadata that Check answers with."""

KEY_FROM_QUERY = "extauthz.key_from_query"
"""Moves a key out of the query, before anything reads or logs the path."""

CALL_NAMESPACE = "extauthz.call"
REQUEST_ID_KEY = "request_id"
"""Where the access logs find the id that Envoy gave to a call, see `_request_id`."""

IDENTITY_FIRST = "extauthz.identity_first"
"""Asks Check who calls, by the headers alone, before a large body is buffered."""

LENGTH_KEY = "length"
_LARGE = "unknown|[0-9]{5,}"
"""What `LENGTH_KEY` is for a body of 10 kB or more, or of a length that nobody says."""

CHECK_CLUSTER = "check"

_INFLATE_RATIO_MAX = 1032
"""The most that deflate can reach. At Envoy's default of 100 an answer that repeats itself was
cut off in the middle without an error, and its usage with it (measured)."""


def http_filters(settings: EnvoySettings) -> list[HttpFilter]:
    """Requests pass from first to last, responses from last to first.

    So Lua edits the body that Check allowed, and reads responses that are decompressed already.
    """
    return [
        # Does nothing but on the routes that say so.
        HttpFilter(name=KEY_FROM_QUERY, typed_config=Any.pack(HeaderMutation())),
        HttpFilter(
            name="envoy.filters.http.header_to_metadata", typed_config=Any.pack(_request_id())
        ),
        *token_filters(settings),
        *flood_filters(settings),
        HttpFilter(name=IDENTITY_FIRST, typed_config=Any.pack(_identity_first(settings))),
        HttpFilter(name=EXT_AUTHZ, typed_config=Any.pack(_ext_authz(settings))),
        HttpFilter(name="envoy.filters.http.lua", typed_config=Any.pack(_lua())),
        _decompressor("gzip", Gzip(max_inflate_ratio=_INFLATE_RATIO_MAX)),
        _decompressor("brotli", Brotli()),
        _decompressor("zstd", Zstd()),
        # Without suppress_envoy_headers every response would name its time in the upstream.
        HttpFilter(
            name="envoy.filters.http.router",
            typed_config=Any.pack(Router(suppress_envoy_headers=True)),
        ),
    ]


def _request_id() -> Config:
    """Keep a call's id for the access logs.

    Providers do not get `x-request-id`, and once an upstream filter has removed it, the log has
    neither a request_id nor a stream_id (measured): both read the header when the entry is made.
    """
    return Config(
        request_rules=[
            ConfigRule(
                header="x-request-id",
                on_header_present=ConfigKeyValuePair(
                    metadata_namespace=CALL_NAMESPACE, key=REQUEST_ID_KEY
                ),
            ),
            ConfigRule(
                header="content-length",
                on_header_present=ConfigKeyValuePair(
                    metadata_namespace=CALL_NAMESPACE, key=LENGTH_KEY
                ),
                on_header_missing=ConfigKeyValuePair(
                    metadata_namespace=CALL_NAMESPACE, key=LENGTH_KEY, value="unknown"
                ),
            ),
        ]
    )


def _identity_first(settings: EnvoySettings) -> ExtAuthz:
    """A question without a body. Small bodies are spared it: they cost less than it does."""
    first = _ext_authz(settings)
    first.with_request_body = None
    first.stat_prefix = "identity"
    first.filter_enabled_metadata = MetadataMatcher(
        filter=CALL_NAMESPACE,
        path=[MetadataMatcherPathSegment(key=LENGTH_KEY)],
        value=ValueMatcher(
            string_match=StringMatcher(safe_regex=RegexMatcher(regex=_LARGE)),
        ),
    )
    return first


def _ext_authz(settings: EnvoySettings) -> ExtAuthz:
    return ExtAuthz(
        transport_api_version=ApiVersion.V3,
        # No retry policy: a second Check is a second reservation.
        grpc_service=GrpcService(
            envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=CHECK_CLUSTER),
            timeout=settings.check_timeout,
        ),
        # The whole body or a 413: a key may hide, or stand twice, in a tail that Check cannot see.
        # As bytes: a string has every byte that is not UTF-8 replaced by "!".
        with_request_body=BufferSettings(
            max_request_bytes=settings.max_body_bytes,
            allow_partial_message=False,
            pack_as_bytes=True,
        ),
        failure_mode_allow=False,
        status_on_error=HttpStatus(code=StatusCode.ServiceUnavailable),
        validate_mutations=True,
        # Check decides, it does not write requests: a content-length that it set would be
        # forwarded as it is. Headers for the response are not covered by these rules.
        decoder_header_mutation_rules=HeaderMutationRules(disallow_all=True),
        # What Envoy has verified of a token; no client can write there.
        metadata_context_namespaces=[JWT_AUTHN] if settings.token_issuers else [],
        include_peer_certificate=True,
        stat_prefix="budget",
    )


def _lua() -> Lua:
    return Lua(default_source_code=DataSource(inline_string=lua_source()))


def lua_source() -> str:
    """The Lua of this package: inline, so that the bootstrap is one file that cannot come apart."""
    return resources.files("extauthz.bootstrap").joinpath("filter.lua").read_text("utf-8")


def _decompressor(name: str, library: Gzip | Brotli | Zstd) -> HttpFilter:
    return HttpFilter(
        name=f"envoy.filters.http.decompressor.{name}",
        typed_config=Any.pack(
            Decompressor(
                decompressor_library=TypedExtensionConfig(
                    name=f"envoy.compression.{name}.decompressor", typed_config=Any.pack(library)
                ),
                request_direction_config=DecompressorRequestDirectionConfig(
                    common_config=DecompressorCommonDirectionConfig(
                        # A flag needs a key; nothing sets this one.
                        enabled=RuntimeFeatureFlag(
                            default_value=False, runtime_key="extauthz.decompress_requests"
                        )
                    ),
                    advertise_accept_encoding=False,
                ),
                response_direction_config=DecompressorResponseDirectionConfig(
                    # `cache-control: no-transform` would hide the usage from Lua.
                    common_config=DecompressorCommonDirectionConfig(ignore_no_transform_header=True)
                ),
            )
        ),
    )
