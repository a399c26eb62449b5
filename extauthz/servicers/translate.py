"""Between Envoy's protobuf messages and the service's plain values."""

import math
import random
from collections.abc import Iterable
from typing import Any

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from extauthz.pb import access_log_pb2, ext_authz_pb2
from extauthz.policies import Line
from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse, Refusal
from extauthz.reasons import Decision, Reason
from extauthz.service.budget_headers import budget_headers, reset_seconds
from extauthz.service.call_record import CallRecord
from extauthz.service.completed_call import CompletedCall
from extauthz.service.lines import tightest
from extauthz.service.verdict import CallAttributes, Verdict
from extauthz.servicers.certificates import ends_at_ms

CHECK_NAMESPACE = "envoy.filters.http.ext_authz"
USAGE_NAMESPACE = "extauthz.usage"
CALL_NAMESPACE = "extauthz.call"
JWT_NAMESPACE = "envoy.filters.http.jwt_authn"
"""Written by Envoy for tokens that it has verified, and by nothing else."""

_OK, _PERMISSION_DENIED = 0, 7  # google.rpc.Code
_DEFAULT_API = "openai"
_HELD_RETRY_SECONDS = (1, 3)
PARTIAL_BODY = "x-envoy-auth-partial-body"
"""Says whether Check sees less of a body than the provider will. Envoy does not refuse what is too
large where a filter before Check has made the body wait (measured with 1.40): it cuts it for Check,
in spite of `allow_partial_message: false`, and sends on all of it."""
CLIENT_LEFT = "downstream_remote_disconnect"
REFUSED_STREAM = "upstream_reset_before_response_started{remote_refused_stream_reset"


def call_attributes(request: ext_authz_pb2.CheckRequest) -> CallAttributes:
    """What Check is asked. The provider is the one that Envoy's route names, not the path's."""
    attributes = request.attributes
    http = attributes.request.http
    provider = attributes.context_extensions.get("provider", "")
    # (the prefix of an intercepted host is empty, whatever its provider is called)
    prefix = attributes.context_extensions.get("prefix", f"/{provider}")
    path, _, query = http.path.partition("?")
    return CallAttributes(
        provider=provider,
        method=http.method,
        path=path.removeprefix(prefix) if provider else path,
        query=query,
        headers=http.headers,
        body=http.raw_body,
        request_id=http.headers.get("x-request-id", ""),
        payloads=_payloads(attributes.metadata_context.filter_metadata.get(JWT_NAMESPACE)),
        principal=attributes.source.principal,
        certificate_ends_at_ms=ends_at_ms(
            attributes.source.certificate, attributes.source.principal
        ),
        is_whole=http.headers.get(PARTIAL_BODY) != "true",
    )


def _payloads(verified: Struct | None) -> dict[str, Any]:
    """The claims of each verified token, by its issuer."""
    return {} if verified is None else MessageToDict(verified)


def check_response(verdict: Verdict, body_size: int, now_ms: int) -> ext_authz_pb2.CheckResponse:
    """What Envoy is told."""
    if verdict.decision in (Decision.ALLOW, Decision.SHADOW_DENY):
        return _allowed(verdict, body_size, now_ms)
    return _denied(verdict, now_ms)


def proceed() -> ext_authz_pb2.CheckResponse:
    """Nothing stands against reading the body; nothing is decided yet."""
    return ext_authz_pb2.CheckResponse(
        status=ext_authz_pb2.RpcStatus(code=_OK), ok_response=ext_authz_pb2.OkHttpResponse()
    )


def _allowed(verdict: Verdict, body_size: int, now_ms: int) -> ext_authz_pb2.CheckResponse:
    response = ext_authz_pb2.CheckResponse(status=ext_authz_pb2.RpcStatus(code=_OK))
    shown = tightest(verdict.lines, verdict.balances)
    headers = [("x-budget-decision-id", verdict.decision_id)]
    if verdict.output_cap is not None:
        headers.append(("x-budget-output-cap", str(verdict.output_cap)))
    if shown is not None:
        headers += budget_headers(verdict.lines[shown], verdict.balances[shown], now_ms)
    _add_headers(response.ok_response.response_headers_to_add, headers)
    if verdict.record is not None:
        _add_metadata(response.dynamic_metadata, verdict, verdict.record, body_size)
    return response


def _add_metadata(metadata: Struct, verdict: Verdict, record: CallRecord, body_size: int) -> None:
    """For Lua (`rid`, `edits`, `size`, `unasked_usage`) and for the sink (`call`)."""
    fields = metadata.fields
    fields["rid"].string_value = record.reservation_id
    fields["call"].string_value = record.to_json()
    if verdict.facts is not None and verdict.facts.unasked_usage:
        fields["unasked_usage"].bool_value = True
    if verdict.edits:
        fields["size"].number_value = body_size
        values = fields["edits"].list_value.values
        for edit in verdict.edits:
            values.add().number_value = edit.offset
            values.add().number_value = edit.dropped
            values.add().string_value = edit.text


def _denied(verdict: Verdict, now_ms: int) -> ext_authz_pb2.CheckResponse:
    adapter = ADAPTERS[verdict.upstream.api if verdict.upstream else _DEFAULT_API]
    line = None if verdict.shown is None else verdict.lines[verdict.shown]
    details: dict[str, str] = {}
    headers = [
        ("content-type", "application/json"),
        ("x-budget-reason", verdict.reason.value),
        ("x-budget-decision-id", verdict.decision_id),
        *adapter.refusal_headers(verdict.status).items(),
        *_retry_headers(verdict, line, now_ms),
    ]
    if line is not None and line.budget is not None:
        assert verdict.shown is not None
        budget = budget_headers(line, verdict.balances[verdict.shown], now_ms)
        headers += budget
        details = {"budget": line.budget.id} | {
            name.removeprefix("x-budget-").replace("-", "_"): value
            for name, value in budget
            if name.startswith("x-budget-")
        }
    refusal = Refusal(verdict.status, verdict.reason, verdict.message, verdict.decision_id, details)
    response = ext_authz_pb2.CheckResponse(status=ext_authz_pb2.RpcStatus(code=_PERMISSION_DENIED))
    response.denied_response.status.code = verdict.status
    _add_headers(response.denied_response.headers, headers)
    response.denied_response.body = adapter.refusal_body(refusal).decode()
    # The log tells refusals apart without a reservation.
    response.dynamic_metadata.fields["reason"].string_value = verdict.reason.value
    response.dynamic_metadata.fields["decision"].string_value = verdict.decision_id
    return response


def _retry_headers(verdict: Verdict, line: Line | None, now_ms: int) -> list[tuple[str, str]]:
    """Whether and when a retry can help: a spent budget not before it resets, held room soon."""
    if verdict.reason is Reason.BUDGET_EXHAUSTED:
        reset = reset_seconds(line, now_ms) if line else None
        return [
            ("x-should-retry", "false"),
            *([("retry-after", str(reset))] if reset is not None else []),
        ]
    is_stranger = verdict.reason is Reason.UNKNOWN_AGENT and verdict.status == 429
    is_held = verdict.reason in (Reason.BUDGET_HELD, Reason.TOO_MANY_IN_FLIGHT)
    if is_held or is_stranger or verdict.status == 503:
        seconds = random.uniform(*_HELD_RETRY_SECONDS)  # noqa: S311 - jitter, not a secret
        return [("x-should-retry", "true"), ("retry-after", str(math.ceil(seconds)))]
    return [("x-should-retry", "false")]


def _add_headers(
    options: RepeatedCompositeFieldContainer[ext_authz_pb2.HeaderValueOption],
    pairs: Iterable[tuple[str, str]],
) -> None:
    """In place: messages that are made from keywords and then copied take three times as long."""
    add, action = options.add, ext_authz_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    for key, value in pairs:
        add(append_action=action, header={"key": key, "value": value})


def completed_call(entry: access_log_pb2.HTTPAccessLogEntry, record: CallRecord) -> CompletedCall:
    """One access-log entry of a reserved call."""
    common, response = entry.common_properties, entry.response
    usage = common.metadata.filter_metadata.get(USAGE_NAMESPACE)
    details = response.response_code_details
    started_ms = common.start_time.ToMilliseconds()
    duration_ms = common.duration.ToMilliseconds()
    return CompletedCall(
        record=record,
        captured=_captured(usage),
        status=response.response_code.value,
        via_upstream=details == "via_upstream",
        left=has_left(entry),
        refused=(
            common.response_flags.upstream_connection_failure or details.startswith(REFUSED_STREAM)
        ),
        periodic=common.access_log_type == access_log_pb2.DOWNSTREAM_PERIODIC,
        ended_at_ms=started_ms + duration_ms,
        duration_ms=duration_ms,
        client_left=details.startswith(CLIENT_LEFT),
    )


def has_left(entry: access_log_pb2.HTTPAccessLogEntry) -> bool:
    """Whether a byte of the request went to the provider."""
    return entry.common_properties.HasField("time_to_first_upstream_tx_byte")


def record_text(entry: access_log_pb2.HTTPAccessLogEntry) -> str | None:
    """The call record in an entry's metadata; None for a call that was never reserved."""
    metadata = entry.common_properties.metadata.filter_metadata.get(CHECK_NAMESPACE)
    if metadata is None or "call" not in metadata.fields:
        return None
    return metadata.fields["call"].string_value


def settling_part(data: bytes) -> bytes:
    """Of a serialized entry what settles it: the rest is for no disk.

    Envoy adds the request's path with its query (where some SDKs put the agent's key), and what
    other filters have found out, such as a token's claims.
    """
    entry = access_log_pb2.HTTPAccessLogEntry.FromString(data)
    entry.DiscardUnknownFields()
    found = entry.common_properties.metadata.filter_metadata
    for namespace in set(found) - {CHECK_NAMESPACE, USAGE_NAMESPACE, CALL_NAMESPACE}:
        del found[namespace]
    return entry.SerializeToString()


def request_id(entry: access_log_pb2.HTTPAccessLogEntry) -> str:
    """The id that Envoy minted for the call; in metadata, as no provider may see its header."""
    kept = entry.common_properties.metadata.filter_metadata.get(CALL_NAMESPACE)
    return kept.fields["request_id"].string_value if kept is not None else ""


def _captured(usage: Struct | None) -> CapturedResponse:
    if usage is None:
        return CapturedResponse()
    fields = usage.fields

    def text(name: str) -> str | None:
        return fields[name].string_value if name in fields else None

    return CapturedResponse(
        usage=text("usage"),
        usage_start=text("usage_start"),
        model=text("model"),
        service_tier=text("service_tier"),
        error="error" in fields and fields["error"].bool_value,
        complete="complete" in fields and fields["complete"].bool_value,
        error_code=text("error_code"),
        metrics=text("metrics"),
    )
