"""Between Envoy's messages and plain values: what Check answers, and what an entry says."""

import json
import time
from urllib.parse import quote

import pytest
from certificates import Certificates, can_be_made
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st
from service_rules import DOLLAR, KEY, Desk, agent, budget, call

from extauthz.pb import access_log_pb2, ext_authz_pb2
from extauthz.policies import Unit
from extauthz.providers.base import CapturedResponse
from extauthz.service.call_record import CallRecord, HeldPart
from extauthz.servicers.translate import (
    CALL_NAMESPACE,
    CHECK_NAMESPACE,
    USAGE_NAMESPACE,
    call_attributes,
    check_response,
    completed_call,
    record_text,
    request_id,
)
from extauthz.windows import Period, Window

RECORD = CallRecord("i", "d", "o", "bot", "openai", "m", 1, 5, 2, (HeldPart("k", "usd", 3, 4),))


def check_request(path: str, provider: str = "openai", **headers: str):
    request = ext_authz_pb2.CheckRequest()
    http = request.attributes.request.http
    http.method, http.path, http.raw_body = "POST", path, b"{}"
    for key, value in headers.items():
        http.headers[key.replace("_", "-")] = value
    request.attributes.context_extensions["provider"] = provider
    return request


@pytest.mark.parametrize(
    ("path", "provider", "read", "query"),
    [
        ("/openai/v1/chat/completions", "openai", "/v1/chat/completions", ""),
        ("/openai/v1/messages?beta=true", "openai", "/v1/messages", "beta=true"),
        ("/openai", "openai", "", ""),
        ("/v1/chat/completions", "openai", "/v1/chat/completions", ""),
        ("/openai/openai/v1/models", "openai", "/openai/v1/models", ""),
        ("/x?a?b", "", "/x", "a?b"),
    ],
)
def test_the_path_is_the_providers_own(path, provider, read, query):
    attributes = call_attributes(check_request(path, provider))
    assert (attributes.path, attributes.query) == (read, query)
    assert attributes.provider == provider


def test_a_request_is_read_as_envoy_shows_it():
    attributes = call_attributes(check_request("/openai/x", x_request_id="r", x_api_key="k"))
    assert (attributes.method, attributes.body, attributes.request_id) == ("POST", b"{}", "r")
    assert attributes.headers["x-api-key"] == "k"


@pytest.mark.parametrize(("said", "whole"), [("true", False), ("false", True), (None, True)])
def test_a_body_that_envoy_has_cut_for_check_is_known_as_such(said, whole):
    headers = {} if said is None else {"x_envoy_auth_partial_body": said}
    assert call_attributes(check_request("/openai/x", **headers)).is_whole is whole


def test_a_certificates_end_is_read_and_what_cannot_be_read_has_ended(tmp_path):
    if not can_be_made():
        pytest.skip("no openssl on this machine")
    pem = Certificates.made_in(tmp_path).certificate.read_text()
    request = check_request("/openai/x")
    assert call_attributes(request).certificate_ends_at_ms is None

    source = request.attributes.source
    source.principal = "spiffe://test/bot"
    assert call_attributes(request).certificate_ends_at_ms == 0

    source.certificate = quote(pem)
    ends_at_ms = call_attributes(request).certificate_ends_at_ms
    assert 0 < ends_at_ms - time.time() * 1000 <= 2 * 86_400_000

    source.certificate = "-----BEGIN%20CERTIFICATE-----"
    assert call_attributes(request).certificate_ends_at_ms == 0


def headers_of(options) -> dict[str, str]:
    return {option.header.key: option.header.value for option in options}


async def answer(who, *calls):
    desk = Desk.of(who)
    for attributes in calls:
        verdict = await desk.authorizer.authorize(attributes)
    return verdict, check_response(verdict, len(calls[-1].body), desk.clock())


async def test_an_allowed_call_carries_its_reservation_and_shows_the_budget():
    verdict, response = await answer(agent(budget(10)), call(3))
    metadata = response.dynamic_metadata
    assert response.status.code == 0
    assert metadata["rid"] == verdict.record.reservation_id
    assert CallRecord.from_json(metadata["call"]) == verdict.record
    headers = headers_of(response.ok_response.response_headers_to_add)
    assert headers["x-budget-held-usd"] == "3.00"
    assert verdict.record.reservation_id not in str(headers)
    assert KEY not in str(response)


async def test_edits_travel_as_offset_dropped_and_text_with_the_size_of_the_body():
    attributes = call(3, sent={"stream": True})
    _, response = await answer(agent(budget(10)), attributes)
    fields = response.dynamic_metadata
    assert list(fields["edits"]) == [1, 0, '"stream_options":{"include_usage":true},']
    assert fields["size"] == len(attributes.body)


@pytest.mark.parametrize(
    ("window", "calls", "reason", "status", "retry"),
    [
        (Period.DAY, [call(11)], "request_too_large", 403, "false"),
        (Period.DAY, [call(8), call(8)], "budget_held", 429, "true"),
        (Period.DAY, [call(headers={})], "unknown_agent", 401, "false"),
    ],
)
async def test_a_refusal_says_why_and_whether_to_retry(window, calls, reason, status, retry):
    _, response = await answer(agent(budget(10, window=Window(window))), *calls)
    headers = headers_of(response.denied_response.headers)
    assert response.status.code == 7
    assert response.denied_response.status.code == status
    assert headers["x-budget-reason"] == reason
    assert headers["x-should-retry"] == retry
    assert ("retry-after" in headers) == (retry == "true")
    assert json.loads(response.denied_response.body)["error"]["code"] == reason
    assert response.dynamic_metadata["reason"] == reason
    assert "rid" not in response.dynamic_metadata.fields


async def test_an_exhausted_budget_tells_the_seconds_to_its_reset_unless_it_has_none():
    for window, has_reset in ((Period.DAY, True), (Period.TOTAL, False)):
        who = agent(budget(1, unit=Unit.REQUESTS, window=Window(window)))
        desk = Desk.of(who)
        verdict = await desk.authorizer.authorize(call(1))
        assert verdict.record is not None
        (ledger,) = desk.memory._ledgers.values()
        (counter,) = ledger.counters.values()
        counter.held, counter.spent = 0, 1
        refused = await desk.authorizer.authorize(call(1))
        response = check_response(refused, 0, desk.clock())
        headers = headers_of(response.denied_response.headers)
        assert headers["x-budget-reason"] == "budget_exhausted"
        assert headers["x-should-retry"] == "false"
        assert ("retry-after" in headers) == has_reset
        if has_reset:
            assert 1 <= int(headers["retry-after"]) <= 86_400
            assert headers["retry-after"] == headers["x-budget-reset"]


async def test_a_refusal_has_the_shape_of_the_provider_that_was_asked():
    attributes = call(11, provider="anthropic", path="/v1/messages", headers={"x-api-key": KEY})
    _, response = await answer(agent(budget(10)), attributes)
    body = json.loads(response.denied_response.body)
    assert (body["type"], body["error"]["type"]) == ("error", "permission_error")


def entry(details: str = "via_upstream", **usage: object):
    made = access_log_pb2.HTTPAccessLogEntry()
    made.response.response_code.value = 200
    made.response.response_code_details = details
    common = made.common_properties
    common.time_to_first_upstream_tx_byte.FromMilliseconds(1)
    common.start_time.FromMilliseconds(1_000)
    common.duration.FromMilliseconds(250)
    common.metadata.filter_metadata[CHECK_NAMESPACE].update({"call": RECORD.to_json()})
    common.metadata.filter_metadata[USAGE_NAMESPACE].update(usage)
    return made


def test_an_entry_is_read_as_the_completed_call_that_it_is():
    ended = completed_call(entry(usage="{}", model='"m"', complete=True, error=True), RECORD)
    assert (ended.status, ended.via_upstream, ended.left) == (200, True, True)
    assert (ended.refused, ended.periodic) == (False, False)
    assert (ended.ended_at_ms, ended.duration_ms) == (1_250, 250)
    assert ended.captured == CapturedResponse("{}", None, '"m"', None, error=True, complete=True)


def test_without_a_byte_sent_a_request_has_not_left():
    made = entry()
    made.common_properties.ClearField("time_to_first_upstream_tx_byte")
    assert not completed_call(made, RECORD).left


@pytest.mark.parametrize(
    ("details", "refused"),
    [
        ("upstream_reset_before_response_started{remote_refused_stream_reset}", True),
        ("upstream_reset_before_response_started{remote_refused_stream_reset|x}", True),
        ("upstream_reset_after_response_started{remote_refused_stream_reset}", False),
        ("upstream_reset_before_response_started{connection_termination}", False),
        ("via_upstream", False),
        ("", False),
    ],
)
def test_only_a_stream_refused_before_any_answer_was_not_processed(details, refused):
    assert completed_call(entry(details), RECORD).refused is refused


def test_a_failed_connection_is_a_refusal():
    made = entry("upstream_reset_before_response_started{connection_failure}")
    made.common_properties.response_flags.upstream_connection_failure = True
    assert completed_call(made, RECORD).refused


def test_a_periodic_entry_is_one():
    made = entry()
    made.common_properties.access_log_type = access_log_pb2.DOWNSTREAM_PERIODIC
    assert completed_call(made, RECORD).periodic


def test_the_record_and_the_request_id_are_found_or_not():
    bare = access_log_pb2.HTTPAccessLogEntry()
    assert record_text(bare) is None
    assert request_id(bare) == ""
    assert record_text(entry()) == RECORD.to_json()
    bare.common_properties.metadata.filter_metadata[CALL_NAMESPACE].update({"request_id": "r"})
    assert request_id(bare) == "r"


values = st.none() | st.booleans() | st.floats(allow_nan=False) | st.text()


@given(st.dictionaries(st.sampled_from(["usage", "model", "complete", "error", "call"]), values))
def test_metadata_of_any_type_is_read_without_an_error(fields):
    made = entry()
    struct = Struct()
    struct.update(fields)
    for name in (CHECK_NAMESPACE, USAGE_NAMESPACE, CALL_NAMESPACE):
        made.common_properties.metadata.filter_metadata[name].CopyFrom(struct)
    ended = completed_call(made, RECORD)
    assert isinstance(ended.captured.complete, bool)
    assert record_text(made) is None or isinstance(record_text(made), str)


async def test_the_amounts_of_a_record_are_exact_beyond_what_a_double_holds():
    record = CallRecord.from_json(
        RECORD.to_json().replace('"estimate":"2"', f'"estimate":"{2**52 - 1}"')
    )
    assert record.estimate_nanousd == 2**52 - 1
    assert record.estimate_nanousd > DOLLAR
