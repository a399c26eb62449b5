"""Header hygiene: what an agent cannot say to Envoy, and what a provider does not get to hear."""

from collections.abc import Collection

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import (
    HeaderMutation,
    HeaderMutationRemoveOnMatch,
)
from envoy_data_plane.envoy.config.core.v3 import (
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

from extauthz.providers.client_headers import BILLED_TO

AGENT_CREDENTIALS = (
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "proxy-authorization",
)
"""Every header that an SDK puts a key in. The agent's own is for Check, never for a provider."""

AGENT_SIGNATURE = ("x-amz-content-sha256", "x-amz-date", "x-amz-security-token")
"""What AWS's SDKs sign with beside `authorization`: Envoy signs anew, or not at all."""

SPEAK_OF_ANOTHER_REQUEST = (
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
)
"""Headers by which some frameworks take a request for another one than it is. Check decided by the
method and the path: `GET /v1/models` must not become a completion behind its back."""

SHORTEN_ANSWERS = ("x-goog-fieldmask",)
"""Headers by which a client has fields left out of its answer, those that tell the usage too: a
count that Google leaves out is zero. (Its query parameters for it, `fields` and `$fields`, are
in no endpoint's.) https://cloud.google.com/apis/docs/system-parameters"""


def remove(name: str) -> HeaderMutation:
    """Take one header away."""
    return HeaderMutation(remove=name)


def remove_prefix(prefix: str) -> HeaderMutation:
    """Take away every header whose (always lower case) name starts so."""
    return HeaderMutation(
        remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix=prefix))
    )


def overwrite(name: str, value: str) -> HeaderValueOption:
    """Set one header, whatever it was."""
    return HeaderValueOption(
        header=HeaderValue(key=name, value=value),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def from_agents() -> list[HeaderMutation]:
    """What is taken off a request before Envoy itself, Check or a route can read it.

    The router obeys `x-envoy-max-retries`, `x-envoy-retry-on`, `x-envoy-upstream-alt-stat-name`
    and more from anyone whom it holds for internal (docs: "HTTP header sanitizing", "Router
    filter"), so the whole prefix goes. `x-request-id` goes so that Envoy mints its own: the
    access log is found by it.
    """
    return [
        remove("x-request-id"),
        remove_prefix("x-envoy-"),
        remove_prefix("x-forwarded-"),
        remove_prefix("x-budget-"),
        remove_prefix("x-extauthz-"),
        *(remove(name) for name in SPEAK_OF_ANOTHER_REQUEST),
        *(remove(name) for name in SHORTEN_ANSWERS),
        # Usage is read from the body: ask for one that is not compressed.
        HeaderMutation(append=overwrite("accept-encoding", "identity")),
    ]


def to_providers(allowed: Collection[str] = ()) -> list[HeaderMutation]:
    """What is taken off a request on its way into the provider's connection.

    Credentials go whatever the provider uses, so that a key meant for one never reaches another;
    what says who pays goes unless it is `allowed`; the rest would tell a provider about this
    network.
    """
    return [
        *(remove(name) for name in AGENT_CREDENTIALS),
        *(remove(name) for name in BILLED_TO if name not in allowed),
        *(remove(name) for name in AGENT_SIGNATURE),
        remove("cookie"),
        remove("expect"),  # Envoy has answered it: a provider's 417 would be charged
        remove("forwarded"),
        remove("te"),  # nothing reads trailers
        remove("via"),
        remove("x-request-id"),
        remove_prefix("x-envoy-"),
        remove_prefix("x-forwarded-"),
    ]
