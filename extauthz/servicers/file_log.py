"""One line of Envoy's file access log: the same facts as an entry of the gRPC log.

The names are those of `bootstrap/access_logs.py`.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from extauthz.providers.base import CapturedResponse
from extauthz.service.call_record import CallRecord, RecordError
from extauthz.service.completed_call import CompletedCall
from extauthz.service.reconcile import UnansweredCheck
from extauthz.servicers.translate import CLIENT_LEFT, REFUSED_STREAM

_FIRST_FIELD = b'{"attempts":'
"""How each line begins: Envoy sorts the names."""
_RESERVATION = re.compile(
    rb'"authz":\{"call":"\{\\"v\\":1,\\"id\\":\\"(?P<id>[0-9a-f-]{36})\\",'
    rb'\\"decision\\":\\"[0-9a-f-]{36}\\",\\"org\\":\\"(?P<org>[A-Za-z0-9_.@-]+)\\"'
)
_END, _PERIODIC = "DownstreamEnd", "DownstreamPeriodic"
_DENIED = "ext_authz_denied"
_CONNECTION_FAILURE = "UF"


class LineError(ValueError):
    """A line is no entry of this log, or its metadata is no call record of this version."""


@dataclass(frozen=True, slots=True)
class Read:
    """What some lines of the log say."""

    calls: list[CompletedCall]
    unanswered: list[UnansweredCheck]
    unreadable: int


def reservation_of(line: bytes) -> tuple[str, str] | None:
    """The org and the id of a line's reservation, without reading the line; None if not found.

    Reading takes ten times as long, and nearly every line is of a call that is settled already.
    Quotes in what others choose are escaped, so nothing but Check's own metadata matches.
    """
    found = _RESERVATION.search(line)
    return (found["org"].decode(), found["id"].decode()) if found else None


def read_lines(lines: list[bytes]) -> Read:
    """Read lines; those that cannot be read are counted."""
    read, unreadable = Read([], [], 0), 0
    for line in lines:
        try:
            found = read_line(line)
        except LineError:
            unreadable += 1
            found = _behind_a_torn_line(line)
        if isinstance(found, CompletedCall):
            read.calls.append(found)
        elif found is not None:
            read.unanswered.append(found)
    return Read(read.calls, read.unanswered, unreadable)


def read_line(line: bytes) -> CompletedCall | UnansweredCheck | None:
    """What a line says; None if nothing was reserved for its call.

    Raises:
        LineError: it cannot be read.
    """
    try:
        fields = json.loads(line)
        record = (fields["authz"] or {}).get("call")
        if record is None:
            return _unanswered(fields)
        return _completed(fields, CallRecord.from_json(record))
    except RecordError as error:
        raise LineError(str(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LineError("a line that is no entry of Envoy's access log") from error


def _behind_a_torn_line(line: bytes) -> CompletedCall | UnansweredCheck | None:
    """A line that was cut short by a crash or a full disk has the next one on its tail."""
    at = line.rfind(_FIRST_FIELD)
    if at <= 0:
        return None
    try:
        return read_line(line[at:])
    except LineError:
        return None


def _completed(fields: dict[str, Any], record: CallRecord) -> CompletedCall:
    details = fields["code_details"] or ""
    kind = fields["type"]
    if kind not in (_END, _PERIODIC):
        raise LineError(f"a line of the type {kind!r}")
    return CompletedCall(
        record=record,
        captured=_captured(fields["usage"]),
        status=fields["code"] or 0,
        via_upstream=details == "via_upstream",
        left=fields["sent_after_us"] is not None,
        refused=_CONNECTION_FAILURE in (fields["flags"] or "").split(",")
        or details.startswith(REFUSED_STREAM),
        periodic=kind == _PERIODIC,
        ended_at_ms=_started_at_ms(fields) + fields["duration_ms"],
        duration_ms=fields["duration_ms"],
        client_left=details.startswith(CLIENT_LEFT),
    )


def _unanswered(fields: dict[str, Any]) -> UnansweredCheck | None:
    """A call whose Check was answered by nobody whom Envoy heard, and which never left."""
    if (
        fields["type"] != _END
        or fields["code_details"] == _DENIED
        or fields["sent_after_us"] is not None
        or not fields["request_id"]
    ):
        return None
    started_at_ms = _started_at_ms(fields)
    return UnansweredCheck(
        fields["request_id"], started_at_ms, started_at_ms + (fields["duration_ms"] or 0)
    )


def _started_at_ms(fields: dict[str, Any]) -> int:
    return int(datetime.fromisoformat(fields["time"]).timestamp() * 1000)


def _captured(usage: dict[str, Any] | None) -> CapturedResponse:
    if usage is None:
        return CapturedResponse()

    def text(name: str) -> str | None:
        value = usage.get(name)
        if value is not None and not isinstance(value, str):
            raise LineError(f"{name} is no text")
        return value

    return CapturedResponse(
        usage=text("usage"),
        usage_start=text("usage_start"),
        model=text("model"),
        service_tier=text("service_tier"),
        error=usage.get("error") is True,
        complete=usage.get("complete") is True,
        error_code=text("error_code"),
        metrics=text("metrics"),
    )
