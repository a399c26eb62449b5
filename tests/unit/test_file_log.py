"""Envoy's file log says the same as its gRPC log; `access_log_lines.jsonl` is from a real run."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extauthz.providers.base import UNBILLED_STATUS
from extauthz.service.completed_call import CompletedCall, Ending, ending_of
from extauthz.service.reconcile import UnansweredCheck
from extauthz.servicers.file_log import LineError, read_line, read_lines, reservation_of

LINES = (Path(__file__).parent / "access_log_lines.jsonl").read_bytes().splitlines()
ANSWERED, STREAMED, DENIED, REFUSED, UNREACHABLE, LEFT, UNCHECKED = LINES


def changed(line: bytes, **fields: object) -> bytes:
    return json.dumps(json.loads(line) | fields, separators=(",", ":"), sort_keys=True).encode()


def call_of(line: bytes) -> CompletedCall:
    call = read_line(line)
    assert isinstance(call, CompletedCall)
    return call


def test_an_answered_call_is_charged_what_its_line_says_was_used() -> None:
    call = call_of(ANSWERED)

    assert (call.record.agent, call.record.provider, call.status) == ("a", "openai", 200)
    assert (call.via_upstream, call.left, call.refused, call.periodic) == (True, True, False, False)
    assert call.captured.complete
    assert json.loads(call.captured.usage or "")["completion_tokens"] == 16
    assert json.loads(call.captured.model or "") == "gpt-4o-mini-2024-07-18"
    assert 0 <= call.ended_at_ms - call.record.reserved_at_ms < 1000
    assert ending_of(call, UNBILLED_STATUS) is Ending.CHARGE


def test_a_stream_has_the_usage_of_its_start_and_of_its_end() -> None:
    call = call_of(STREAMED)

    assert json.loads(call.captured.usage_start or "")["output_tokens"] == 1
    assert json.loads(call.captured.usage or "")["output_tokens"] == 16


@pytest.mark.parametrize(
    ("line", "ending"),
    [
        (REFUSED, Ending.RELEASE),
        (UNREACHABLE, Ending.RELEASE),
        (LEFT, Ending.CHARGE),
        (changed(ANSWERED, type="DownstreamPeriodic"), Ending.RENEW),
        (changed(LEFT, sent_after_us=None), Ending.RELEASE),
        (changed(LEFT, code=429), Ending.RELEASE),
    ],
)
def test_a_line_asks_for_the_ending_that_the_entry_would(line: bytes, ending: Ending) -> None:
    assert ending_of(call_of(line), UNBILLED_STATUS) is ending


def test_a_reservation_is_found_without_reading_the_line() -> None:
    for line in LINES:
        call = read_line(line)
        expected = (
            (call.record.org, call.record.reservation_id)
            if isinstance(call, CompletedCall)
            else None
        )
        assert reservation_of(line) == expected


def test_no_text_of_a_client_passes_for_a_reservation() -> None:
    forged = changed(DENIED, path=ANSWERED.decode(), provider_request_id=ANSWERED.decode())

    assert reservation_of(forged) is None


def test_a_call_that_was_denied_reserved_nothing() -> None:
    assert read_line(DENIED) is None


def test_a_call_whose_check_nobody_answered_is_told_with_its_request() -> None:
    check = read_line(UNCHECKED)

    assert isinstance(check, UnansweredCheck)
    assert check.request_id == json.loads(UNCHECKED)["request_id"]
    assert check.ended_at_ms - check.started_at_ms == 4000
    assert read_line(changed(UNCHECKED, request_id=None)) is None
    assert read_line(changed(UNCHECKED, sent_after_us=5)) is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        ANSWERED[:-20],
        changed(ANSWERED, authz={"call": "{}"}),
        changed(ANSWERED, authz={"call": 7}),
        changed(ANSWERED, authz=[1]),
        changed(ANSWERED, usage={"usage": 7}),
        changed(ANSWERED, usage="text"),
        changed(ANSWERED, time="yesterday"),
        changed(ANSWERED, duration_ms=None),
        changed(ANSWERED, type="TcpEnd"),
    ],
)
def test_a_line_that_cannot_be_read_is_counted_and_hides_no_other(line: bytes) -> None:
    with pytest.raises(LineError):
        read_line(line)

    read = read_lines([ANSWERED, line, REFUSED])

    assert (len(read.calls), read.unreadable) == (2, 1)


@given(st.integers(1, len(STREAMED) - 1))
def test_a_line_behind_one_that_was_cut_short_is_read(cut: int) -> None:
    read = read_lines([STREAMED[:cut] + ANSWERED])

    assert [call.record for call in read.calls] == [call_of(ANSWERED).record]
    assert read.unreadable == 1


@given(st.binary(max_size=200))
def test_no_line_stops_the_reading(line: bytes) -> None:
    assert len(read_lines([line, ANSWERED]).calls) >= 1
