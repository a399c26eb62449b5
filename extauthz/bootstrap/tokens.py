"""Agents' tokens, which Envoy verifies.

Check hears of what is verified in a field of its request that only Envoy writes; the token itself
ends here.
"""

from datetime import timedelta

from envoy_data_plane.envoy.config.core.v3 import DataSource, HttpUri
from envoy_data_plane.envoy.config.route.v3 import RouteMatch
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn.v3 import (
    JwksAsyncFetch,
    JwtAuthentication,
    JwtHeader,
    JwtProvider,
    JwtRequirement,
    RemoteJwks,
    RequirementRule,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.google.protobuf import Any, Empty

from extauthz.bootstrap.settings import EnvoySettings, TokenIssuer

JWT_AUTHN = "envoy.filters.http.jwt_authn"
"""The filter's name is also the namespace of the metadata in which verified payloads are."""

_FETCH_TIMEOUT = timedelta(seconds=5)
_KEYS_KEPT = timedelta(minutes=5)
_CLOCK_SKEW_SECONDS = 60


def token_filters(settings: EnvoySettings) -> list[HttpFilter]:
    """Verify tokens wherever an SDK puts its key.

    A token that is missing or wrong leaves no payload, and so names nobody: it is Check that
    refuses, as it refuses a key, because the agent may be known by something else.
    """
    if not settings.token_issuers:
        return []
    filter_ = JwtAuthentication(
        providers={
            issuer_cluster(n): _provider(n, one) for n, one in enumerate(settings.token_issuers)
        },
        rules=[
            RequirementRule(
                match=RouteMatch(prefix="/"),
                requires=JwtRequirement(allow_missing_or_failed=Empty()),
            )
        ],
    )
    return [HttpFilter(name=JWT_AUTHN, typed_config=Any.pack(filter_))]


def _provider(n: int, issuer: TokenIssuer) -> JwtProvider:
    provider = JwtProvider(
        issuer=issuer.issuer,
        audiences=list(issuer.audiences),
        # Without this, a token that says nothing of its end would hold for ever.
        require_expiration=True,
        clock_skew_seconds=_CLOCK_SKEW_SECONDS,
        from_headers=[
            JwtHeader(name="authorization", value_prefix="Bearer "),
            *(JwtHeader(name=name) for name in ("x-api-key", "api-key", "x-goog-api-key")),
        ],
        forward=False,
        payload_in_metadata=issuer.issuer,
    )
    if issuer.jwks_file is not None:
        provider.local_jwks = DataSource(filename=str(issuer.jwks_file))
        return provider
    provider.remote_jwks = RemoteJwks(
        http_uri=HttpUri(uri=issuer.jwks_url, cluster=issuer_cluster(n), timeout=_FETCH_TIMEOUT),
        cache_duration=_KEYS_KEPT,
        # Fetched before the first call needs it, and kept while the issuer is away.
        async_fetch=JwksAsyncFetch(),
    )
    return provider


def issuer_cluster(n: int) -> str:
    """Where its keys are fetched, and what its filter calls it."""
    return f"issuer_{n}"
