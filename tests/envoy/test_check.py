"""Check: what it is asked, what it can say, and what happens when it does not answer."""

import socket
import threading

import grpc
import h2.connection

from extauthz.servicers.translate import PARTIAL_BODY

MIB = 2**20


def overwrite(name, value):
    from envoy_data_plane.envoy.config.core.v3 import HeaderValue, HeaderValueOption  # noqa: PLC0415

    return HeaderValueOption(header=HeaderValue(key=name, value=value))


def http(rig):
    """What Check was told about the only request."""
    (request,) = rig.check.requests
    return request.attributes.request.http


def test_check_is_told_the_provider_and_its_api(rig):
    rig.call("/anthropic/v1/messages")

    (request,) = rig.check.requests
    assert request.attributes.context_extensions == {
        "provider": "anthropic",
        "api": "anthropic",
        "prefix": "/anthropic",
    }


def test_check_reads_the_whole_body_byte_for_byte(rig):
    body = bytes(range(256)) * (4 * 2**20 // 256)  # as long as it may be, and not UTF-8

    assert rig.call(body=body).status == 200
    assert http(rig).raw_body == body
    assert http(rig).size == len(body)
    assert rig.provider.received[0].body == body


def test_a_body_one_byte_too_long_reaches_neither_check_nor_the_provider(small_rig):
    small_rig.check.reset()
    small_rig.provider.reset()

    reply = small_rig.call("/openai/too-long", body=b"x" * (8 * 2**10 + 1))

    assert reply.status == 413
    assert small_rig.check.requests == []
    assert small_rig.provider.received == []
    details = small_rig.entry("/too-long").response.response_code_details
    assert details == "request_payload_too_large"


def test_check_is_told_of_a_body_that_it_does_not_see_whole(rig):
    """Envoy itself does not refuse one that had to wait for the question who calls. (It does if the
    answer is quicker than the body.)"""
    reply = rig.call("/openai/v1/x", body=b"x" * (4 * MIB + 1))

    if rig.check.requests:
        assert http(rig).headers[PARTIAL_BODY] == "true"
    else:
        assert reply.status == 413
        assert rig.provider.received == []


def test_check_is_told_of_a_body_that_it_sees_whole(rig):
    rig.call("/openai/v1/x", body=b"x" * (4 * MIB))

    assert http(rig).headers[PARTIAL_BODY] == "false"


def test_who_calls_is_asked_before_a_large_body_or_one_of_unsaid_length_is_read(rig):
    rig.call("/openai/v1/small", body=b"x" * 9_999)
    assert rig.check.asked_first == []

    rig.call("/openai/v1/large", body=b"x" * 10_000)
    (first,) = rig.check.asked_first
    assert first.attributes.request.http.raw_body == b""


def test_a_chunked_body_is_read_whole_as_well(rig):
    reply = rig.raw(
        b"POST /openai/v1/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        b'4\r\n{"a"\r\n3\r\n: 1\r\n1\r\n}\r\n0\r\n\r\n'
    )

    assert reply.status == 200
    assert http(rig).raw_body == b'{"a": 1}'


def test_calls_over_http2_pass_the_same_check(rig):
    client = h2.connection.H2Connection()
    client.initiate_connection()
    path = "/openai/v1/over-http2"
    pseudo = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "a"}
    client.send_headers(1, [*pseudo.items()])
    client.send_data(1, b"hello", end_stream=True)
    with socket.create_connection(("127.0.0.1", rig.port), 20) as connection:
        connection.sendall(client.data_to_send())
        rig.wait_for(lambda: rig.check.requests, "Check to be asked")

    assert http(rig).protocol == "HTTP/2"
    assert http(rig).path == "/openai/v1/over-http2"
    assert http(rig).raw_body == b"hello"


def test_a_header_sent_twice_reaches_check_joined_by_a_comma(rig):
    rig.call(headers=[("authorization", "Bearer a"), ("authorization", "Bearer b")])

    assert http(rig).headers["authorization"] == "Bearer a,Bearer b"


def test_what_check_allows_carries_its_metadata_to_lua_and_to_both_logs(rig):
    rig.call("/openai/metadata")

    metadata = rig.metadata("/metadata")
    assert metadata["envoy.filters.http.ext_authz"]["reservation"] == "r-1"
    assert metadata["extauthz.usage"]["reservation_seen"] == "r-1"
    assert rig.line("/metadata")["authz"]["reservation"] == "r-1"
    assert rig.line("/metadata")["usage"]["complete"] is True


def test_what_check_denies_is_passed_on_unchanged_whatever_its_status(rig):
    for status in (402, 403, 413, 429, 503):
        body = '{"mine": "%REQ(:PATH)% stays"}'
        rig.check.behaviour = lambda *_, status=status, body=body: rig.check.deny(
            status, body, content_type="application/json; charset=utf-8", x_budget_reason="mine"
        )

        reply = rig.call(f"/anthropic/denied-{status}")

        assert (reply.status, reply.body.decode()) == (status, body)
        assert reply.headers["content-type"] == "application/json; charset=utf-8"
        assert reply.headers["x-budget-reason"] == "mine"
        assert "x-should-retry" not in reply.headers
    assert rig.provider.received == []
    assert rig.entry("/denied-503").response.response_code_details == "ext_authz_denied"
    metadata = rig.metadata("/denied-503")["envoy.filters.http.ext_authz"]
    assert metadata == {"reason": "budget_exhausted"}


def test_check_can_add_headers_to_the_response_and_none_to_the_request(rig):
    rig.check.behaviour = lambda *_: rig.check.allow(
        headers=[
            overwrite("x-added", "1"),
            overwrite("content-length", "0"),
            overwrite("authorization", "Bearer check"),
            overwrite(":path", "/elsewhere"),
        ],
        headers_to_remove=["x-mine"],
        response_headers_to_add=[overwrite("x-budget-remaining", "7")],
    )

    reply = rig.call("/openai/v1/x", headers=[("x-mine", "1")])

    (received,) = rig.provider.received
    assert reply.headers["x-budget-remaining"] == "7"
    assert (received.path, received.body) == ("/v1/x", b"{}")
    assert received.values("x-added") == []
    assert received.values("x-mine") == ["1"]
    assert received.values("authorization") == ["Bearer sk-provider"]


def test_a_check_that_fails_lets_nothing_pass(rig):
    rig.check.behaviour = lambda _, context: context.abort(grpc.StatusCode.INTERNAL, "broken")

    reply = rig.call("/openai/check-broken")

    assert reply.status == 503
    assert rig.provider.received == []
    assert len(rig.check.requests) == 1  # a second Check would be a second reservation
    entry = rig.entry("/check-broken")
    assert entry.response.response_code_details == "ext_authz_error"
    assert entry.common_properties.upstream_request_attempt_count == 0


def test_a_check_that_is_late_is_cancelled_and_lets_nothing_pass(rig):
    cancelled = threading.Event()
    deadlines = []

    def late(_request, context):
        deadlines.append(context.time_remaining())
        context.add_callback(cancelled.set)
        cancelled.wait(5)
        return rig.check.allow()

    rig.check.behaviour = late

    reply = rig.call("/openai/check-late")

    assert reply.status == 503
    assert cancelled.wait(5)
    assert 0.3 < deadlines[0] <= 0.5  # Check is told how long it has
    assert rig.provider.received == []
    assert "envoy.filters.http.ext_authz" not in rig.metadata("/check-late")


def test_a_client_that_leaves_during_check_cancels_it_at_once(rig):
    asked, cancelled = threading.Event(), threading.Event()

    def slow(_request, context):
        context.add_callback(cancelled.set)
        asked.set()
        cancelled.wait(5)
        return rig.check.allow()

    rig.check.behaviour = slow
    with socket.create_connection(("127.0.0.1", rig.port)) as client:
        client.sendall(b"POST /openai/left HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
        assert asked.wait(5)

    assert cancelled.wait(5)
    entry = rig.entry("/left")
    # Not "ext_authz_error", which it is once Check has had its time.
    assert entry.response.response_code_details == "downstream_remote_disconnect"
    assert "envoy.filters.http.ext_authz" not in rig.metadata("/left")
    assert rig.line("/left")["attempts"] == 0
    assert rig.provider.received == []


def test_with_the_service_gone_nothing_passes_and_with_it_back_calls_do(rig):
    rig.check.stop()
    try:
        assert rig.call("/openai/service-gone").status == 503
        assert rig.provider.received == []
    finally:
        rig.check.start()

    rig.wait_for(lambda: rig.call("/openai/service-back").status == 200, "Check to be used again")
