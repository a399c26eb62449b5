"""What Envoy says when it answers in a provider's place, in words that the provider's SDK reads.

A refusal by Check is a local reply too, and with the same flag (UAEX) and possibly the same status
(503) as a Check that failed; it must pass as Check wrote it. Only `response.code_details` tells
them apart, and only a CEL filter can ask for it. An expression that fails counts as false.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLogFilter, ExtensionFilter
from envoy_data_plane.envoy.config.core.v3 import SubstitutionFormatString
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.google.protobuf import Any, Struct

from extauthz.bootstrap.filters import CALL_NAMESPACE, REQUEST_ID_KEY
from extauthz.bootstrap.floods import ABORTED, DENIED, MARK
from extauthz.bootstrap.headers import overwrite
from extauthz.bootstrap.routes import NO_GRPC, OTHER_HOST
from extauthz.bootstrap.settings import EnvoySettings
from extauthz.providers import ADAPTERS
from extauthz.providers.base import Adapter, Refusal
from extauthz.reasons import Reason

WRITTEN_ELSEWHERE = ("ext_authz_denied", "lua_response")
"""Code details of local replies that are complete already: by Check, by this package's Lua."""

UNROUTED = ("direct_response", "route_not_found")
"""Code details of requests for which there is no provider."""

_TUNNEL = 'request.method == "CONNECT" || response.code_details == "upgrade_failed"'
"""A way through the proxy past everything that reads calls."""

_REQUEST_ID = f"%DYNAMIC_METADATA({CALL_NAMESPACE}:{REQUEST_ID_KEY})%"
"""What to look for in the access logs; null for what was refused before any filter saw it."""

_DEFAULT_API = "openai"
"""The shape for requests without a route, and that of all who speak OpenAI's API."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """One kind of local reply: when it is given and what it says."""

    when: str  # CEL over Envoy's attributes (docs: "Attributes")
    status: HTTPStatus
    message: str
    reason: Reason | None = None  # None: not about budgets
    headers: Mapping[str, str] = field(default_factory=dict)
    keep_status: bool = False  # whether Envoy's own status stays

    def body(self, adapter: Adapter) -> dict[str, object]:
        """The same body as for a refusal by Check; `%...%` is filled in by Envoy."""
        refusal = Refusal(self.status, self.reason or Reason.OK, self.message, _REQUEST_ID)
        body: dict[str, object] = json.loads(adapter.refusal_body(refusal))
        error = body.get("error", body)
        if self.reason is None and isinstance(error, dict) and isinstance(error.get("code"), str):
            error["code"] = "egress_error"
        return body


def local_replies(settings: EnvoySettings) -> LocalReplyConfig:
    """Mappers, of which the first that matches is used.

    The route tells the shape, as the router has rewritten the path by the time an upstream fails.
    """
    mappers = [ResponseMapper(filter=_when(f"response.code_details in {_list(WRITTEN_ELSEWHERE)}"))]
    for reply in _replies(settings):
        for api, adapter in ADAPTERS.items():
            routes = [provider.name for provider in settings.providers if provider.api == api]
            if routes and adapter.refusal_body is not ADAPTERS[_DEFAULT_API].refusal_body:
                when = f"{reply.when} && xds.route_name in {_list(routes)}"
                mappers.append(_mapper(reply, when, adapter))
        mappers.append(_mapper(reply, reply.when, ADAPTERS[_DEFAULT_API]))
    return LocalReplyConfig(mappers=mappers)


def _replies(settings: EnvoySettings) -> Iterator[_Reply]:
    yield _Reply(
        when='response.code_details == "ext_authz_error"',
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        message="The budget service did not answer, so the call was not made and costs nothing. "
        "Try again shortly.",
        reason=Reason.SERVICE_UNAVAILABLE,
        headers={"x-should-retry": "true", "retry-after": "2"},
    )
    yield _Reply(
        when='response.code_details == "overload"',
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        message="The egress proxy has no memory left for another call, so this one was not made "
        "and costs nothing. Try again shortly.",
        reason=Reason.SERVICE_UNAVAILABLE,
        headers={"x-should-retry": "true", "retry-after": "2"},
    )
    yield _Reply(
        when=f'response.code_details == "{ABORTED}" && '
        f'request.headers["{MARK}"].startsWith("{DENIED}")',
        status=HTTPStatus.TOO_MANY_REQUESTS,
        message="Call after call with this key was denied, so this one was not looked at and costs "
        "nothing. See why the others were, and slow down.",
        reason=Reason.LOOP_SUSPECTED,
        headers={"x-should-retry": "true", "retry-after": "2"},
    )
    yield _Reply(
        when=f'response.code_details == "{ABORTED}"',
        status=HTTPStatus.TOO_MANY_REQUESTS,
        message="Too many calls come with keys that were not seen before, so this one was not "
        "looked at and costs nothing. Try again shortly.",
        reason=Reason.UNKNOWN_AGENT,
        headers={"x-should-retry": "true", "retry-after": "2"},
    )
    yield _Reply(
        when="response.code == 413",
        status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        message=f"The body is larger than the {settings.max_body_bytes} bytes that a budget can "
        "be checked for, so the call was not made and costs nothing. Send a smaller one.",
        reason=Reason.BODY_TOO_LARGE,
        headers={"x-should-retry": "false"},
    )
    yield _Reply(
        when=f"({_TUNNEL})",
        status=HTTPStatus.FORBIDDEN,
        message="No tunnel and no upgrade (CONNECT, websockets, h2c) leads through the egress, as "
        "nothing could be counted in it. Call the API with plain HTTP requests at this host, with "
        "a provider's path as base_url.",
        reason=Reason.TUNNEL_REFUSED,
        headers={"x-should-retry": "false"},
    )
    yield _Reply(
        when=f'xds.route_name == "{OTHER_HOST}"',
        status=HTTPStatus.MISDIRECTED_REQUEST,
        message="The request's host is not the one that its TLS connection was made for, so nobody "
        "can tell which provider it is meant for. Use a connection for each host name.",
        reason=Reason.UNKNOWN_ROUTE,
        headers={"x-should-retry": "false"},
    )
    yield _Reply(
        when=f'xds.route_name == "{NO_GRPC}"',
        status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        message="No provider's API is gRPC here, so a request that calls itself gRPC by its "
        "content-type is not passed on. Send 'application/json'.",
        reason=Reason.UNPARSEABLE_BODY,
        headers={"x-should-retry": "false"},
    )
    known = ", ".join(f"/{provider.name}/" for provider in settings.providers)
    yield _Reply(
        when=f"response.code_details in {_list(UNROUTED)}",
        status=HTTPStatus.FORBIDDEN,
        message="No provider is configured at this path. Let the SDK's base_url be this host with "
        f"a path that begins with one of: {known}",
        reason=Reason.UNKNOWN_ROUTE,
        headers={"x-should-retry": "false"},
    )
    yield _Reply(
        when="(response.code >= 400 && response.code < 500 || response.code == 501)",
        status=HTTPStatus.BAD_REQUEST,
        message="This is no HTTP request that every server reads alike, or it did not arrive in "
        "time, so it was not passed on and costs nothing (%RESPONSE_CODE_DETAILS%). Send a plain "
        "request: one length, a path without escaped slashes, few headers.",
        reason=Reason.MALFORMED_REQUEST,
        headers={"x-should-retry": "false"},
        keep_status=True,
    )
    in_its_place = (
        "The egress proxy answered in the provider's place (%RESPONSE_CODE_DETAILS%): "
        "%LOCAL_REPLY_BODY%"
    )
    yield _Reply(
        when="response.code >= 500",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        message=in_its_place,
        keep_status=True,
    )


def _mapper(reply: _Reply, when: str, adapter: Adapter) -> ResponseMapper:
    headers = {**reply.headers, **adapter.refusal_headers(reply.status.value)}
    if reply.reason is not None:
        headers["x-budget-reason"] = reply.reason.value
    return ResponseMapper(
        filter=_when(when),
        status_code=None if reply.keep_status else reply.status.value,
        headers_to_add=[overwrite(name, value) for name, value in sorted(headers.items())],
        body_format_override=SubstitutionFormatString(
            json_format=Struct.from_dict(reply.body(adapter))
        ),
    )


def _when(expression: str) -> AccessLogFilter:
    return AccessLogFilter(
        extension_filter=ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=Any.pack(ExpressionFilter(expression=expression)),
        )
    )


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(json.dumps(value) for value in values)}]"
