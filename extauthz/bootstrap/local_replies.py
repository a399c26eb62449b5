"""What Envoy says when it answers in a provider's place, in words that the provider's SDK reads.

A refusal by Check is a local reply too, and with the same flag (UAEX) and possibly the same status
(503) as a Check that failed; it must pass as Check wrote it. Only `response.code_details` tells
them apart, and only a CEL filter can ask for it. An expression that fails counts as false: then
the mapper is passed over, and Envoy's own text goes out with the same status.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLogFilter, ExtensionFilter
from envoy_data_plane.envoy.config.core.v3 import HeaderValueOption, SubstitutionFormatString
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.google.protobuf import Any, Struct

from extauthz.bootstrap.headers import overwrite
from extauthz.bootstrap.settings import EnvoySettings

WRITTEN_ELSEWHERE = ("ext_authz_denied", "lua_response")
"""Code details of local replies that are complete already: by Check, by this package's Lua."""


UNROUTED = ("direct_response", "route_not_found")
"""Code details of requests for which there is no provider; the second for paths such as `*`."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """One kind of local reply: when it is given and what it says."""

    when: str  # CEL over Envoy's attributes (docs: "Attributes")
    message: str
    code: str  # OpenAI's error.code
    openai_type: str
    anthropic_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int | None = None  # None: as Envoy chose it

    def openai(self) -> dict[str, object]:
        return {
            "error": {
                "message": self.message,
                "type": self.openai_type,
                "param": None,
                "code": self.code,
            }
        }

    def anthropic(self) -> dict[str, object]:
        return {
            "type": "error",
            "error": {"type": self.anthropic_type, "message": self.message},
        }


def local_replies(settings: EnvoySettings) -> LocalReplyConfig:
    """Mappers, of which the first that matches is used.

    The route tells the shape, as the router has rewritten the path by the time an upstream fails.
    A request without a route, or with an API that has no shape of its own, gets OpenAI's.
    """
    anthropic = [p.name for p in settings.providers if p.api == "anthropic"]
    mappers = [ResponseMapper(filter=_when(f"response.code_details in {_list(WRITTEN_ELSEWHERE)}"))]
    for reply in _replies(settings):
        if anthropic:
            where = f"xds.route_name in {_list(anthropic)}"
            mappers.append(_mapper(reply, f"{reply.when} && {where}", reply.anthropic()))
        mappers.append(_mapper(reply, reply.when, reply.openai()))
    return LocalReplyConfig(mappers=mappers)


def _replies(settings: EnvoySettings) -> Iterator[_Reply]:
    yield _Reply(
        when='response.code_details == "ext_authz_error"',
        message="The budget service did not answer, so the call was not made and costs nothing. "
        "Try again shortly.",
        code="service_unavailable",
        openai_type="server_error",
        anthropic_type="api_error",
        headers={
            "x-budget-reason": "service_unavailable",
            "x-should-retry": "true",
            "retry-after": "2",
        },
    )
    yield _Reply(
        when="response.code == 413",
        message=f"The body is larger than the {settings.max_body_bytes} bytes that a budget can "
        "be checked for, so the call was not made and costs nothing. Send a smaller one.",
        code="body_too_large",
        openai_type="invalid_request_error",
        anthropic_type="request_too_large",
        headers={"x-budget-reason": "body_too_large", "x-should-retry": "false"},
    )
    known = ", ".join(f"/{provider.name}/" for provider in settings.providers)
    yield _Reply(
        when=f"response.code_details in {_list(UNROUTED)}",
        message="No provider is configured at this path. Let the SDK's base_url be this host with "
        f"a path that begins with one of: {known}",
        code="unknown_route",
        openai_type="invalid_request_error",
        anthropic_type="not_found_error",
        headers={"x-budget-reason": "unknown_route", "x-should-retry": "false"},
        status=403,
    )
    yield _Reply(
        when="true",
        message="The egress proxy answered in the provider's place: %LOCAL_REPLY_BODY%",
        code="egress_error",
        openai_type="egress_error",
        anthropic_type="api_error",
    )


def _mapper(reply: _Reply, when: str, body: dict[str, object]) -> ResponseMapper:
    return ResponseMapper(
        filter=_when(when),
        status_code=reply.status,
        headers_to_add=[overwrite(name, value) for name, value in reply.headers.items()],
        body_format_override=SubstitutionFormatString(json_format=Struct.from_dict(body)),
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
