"""Routes: `/<provider>/...`, or its host name, goes to that provider; all else goes nowhere."""

from collections.abc import Sequence
from datetime import timedelta

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation
from envoy_data_plane.envoy.config.core.v3 import (
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    KeyValueMutation,
)
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    HeaderMatcher,
    RetryPolicy,
    Route,
    RouteAction,
    RouteActionMaxStreamDuration,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import (
    CheckSettings,
    ExtAuthzPerRoute,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import (
    HeaderMutationPerRoute,
    Mutations,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Any

from extauthz.bootstrap.filters import EXT_AUTHZ, IDENTITY_FIRST, KEY_FROM_QUERY
from extauthz.bootstrap.settings import EnvoySettings, ProviderSettings

UNKNOWN_ROUTE = "unknown_route"
OTHER_HOST = "other_host"
"""Of a request whose host is not that of its TLS: domain fronting, or a mistake."""
NO_GRPC = "no_grpc"
"""Of a request that calls itself gRPC: no API here is, and Envoy would treat it as such."""


def provider_routes(settings: EnvoySettings) -> RouteConfiguration:
    """One route for each provider by the first part of the path; its name is the provider's."""
    return RouteConfiguration(
        name="providers",
        virtual_hosts=[
            VirtualHost(
                name="providers",
                domains=["*"],
                routes=[
                    _no_grpc(),
                    # With its slash: `/openai` and `/openaix` are not this provider.
                    *(
                        _provider(settings, provider, f"/{provider.name}")
                        for provider in settings.providers
                    ),
                    _unknown_route(),
                ],
            )
        ],
    )


def host_routes(
    settings: EnvoySettings, provider: ProviderSettings, host: str
) -> RouteConfiguration:
    """All paths of one intercepted host name; in its TLS, another host is no host at all.

    A gateway's own host name has the base path in it already, the API's documented one has not.
    """
    prefix = provider.upstream.base_path if host == provider.upstream.host else ""
    return RouteConfiguration(
        name=f"intercept_{host}",
        virtual_hosts=[
            VirtualHost(
                name=host,
                domains=[host, f"{host}:443"],
                routes=[_no_grpc(), _provider(settings, provider, prefix), _unknown_route()],
            ),
            VirtualHost(name=OTHER_HOST, domains=["*"], routes=[_other_host()]),
        ],
    )


def _provider(settings: EnvoySettings, provider: ProviderSettings, prefix: str) -> Route:
    """What stands behind the prefix is the provider's own path, for Check as for the provider."""
    upstream = provider.upstream
    about = {"provider": provider.name, "api": provider.api, "prefix": prefix}
    return Route(
        name=provider.name,
        match=RouteMatch(prefix=f"{prefix}/"),
        route=RouteAction(
            cluster=provider.cluster,
            prefix_rewrite=f"{upstream.base_path}/",
            # Not auto_host_rewrite: that leaves out the port of a local server.
            host_rewrite_literal=upstream.authority,
            # The default of 15 s covers the whole response (docs: RouteAction.timeout), so it
            # would cut every long answer; the stream's duration is bounded instead.
            timeout=timedelta(0),
            max_stream_duration=RouteActionMaxStreamDuration(
                max_stream_duration=settings.max_stream_duration
            ),
            # Only where the provider cannot have seen, and so not billed, the first attempt.
            retry_policy=RetryPolicy(retry_on="connect-failure,refused-stream", num_retries=1),
        ),
        typed_per_filter_config={
            EXT_AUTHZ: _check_is_told(about),
            IDENTITY_FIRST: _check_is_told({**about, "phase": "identity"}),
            **_key_from_query(provider),
        },
    )


def _check_is_told(about: dict[str, str]) -> Any:
    return Any.pack(ExtAuthzPerRoute(check_settings=CheckSettings(context_extensions=about)))


def _key_from_query(provider: ProviderSettings) -> dict[str, Any]:
    """Move a key from the query to its header: no log holds headers, all hold paths.

    Beside a key that is in the header already, so that two keys are none.
    """
    if provider.key_parameter is None:
        return {}
    parameter, header = provider.key_parameter
    value = HeaderValueOption(
        header=HeaderValue(key=header, value=f"%QUERY_PARAM({parameter})%"),
        append_action=HeaderValueOptionHeaderAppendAction.APPEND_IF_EXISTS_OR_ADD,
    )
    mutations = Mutations(
        request_mutations=[HeaderMutation(append=value)],
        query_parameter_mutations=[KeyValueMutation(remove=parameter)],
    )
    return {KEY_FROM_QUERY: Any.pack(HeaderMutationPerRoute(mutations=mutations))}


def _unknown_route() -> Route:
    """The answer's body and headers are written by `local_replies`.

    Nothing can leave through this route, so Check is spared: it would read up to 32 MiB to refuse.
    """
    return _nowhere(UNKNOWN_ROUTE, 403)


def _other_host() -> Route:
    """Misdirected: a client that shares connections among hosts makes one of its own for it."""
    return _nowhere(OTHER_HOST, 421)


def _no_grpc() -> Route:
    """Envoy answers such a request with 200, whatever it is told to: Lua sets that right."""
    is_grpc = StringMatcher(prefix="application/grpc", ignore_case=True)
    return _nowhere(NO_GRPC, 415, [HeaderMatcher(name="content-type", string_match=is_grpc)])


def _nowhere(name: str, status: int, headers: Sequence[HeaderMatcher] = ()) -> Route:
    return Route(
        name=name,
        match=RouteMatch(prefix="/", headers=[*headers]),
        direct_response=DirectResponseAction(status=status),
        typed_per_filter_config={
            name: Any.pack(ExtAuthzPerRoute(disabled=True)) for name in (EXT_AUTHZ, IDENTITY_FIRST)
        },
    )
