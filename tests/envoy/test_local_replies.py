"""What Envoy says in a provider's place: a shape that SDKs know, and a reason."""

import pytest


@pytest.fixture
def without_check(rig):
    rig.check.stop()
    yield rig
    rig.check.start()
    rig.wait_for(lambda: rig.call("/openai/again").status == 200, "Check to be used again")


def test_a_check_that_cannot_be_reached_is_told_to_openais_sdk(without_check):
    reply = without_check.call("/openai/v1/chat/completions")

    assert reply.status == 503
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-budget-reason"] == "service_unavailable"
    assert reply.headers["x-should-retry"] == "true"
    assert int(reply.headers["retry-after"]) > 0
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
    assert "costs nothing" in error["message"]


def test_a_check_that_cannot_be_reached_is_told_to_anthropics_sdk(without_check):
    reply = without_check.call("/anthropic/v1/messages")

    assert reply.status == 503
    assert reply.headers["x-budget-reason"] == "service_unavailable"
    assert reply.json()["type"] == "error"
    assert reply.json()["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    ("path", "error_type"),
    [("/openai/v1/x", "invalid_request_error"), ("/anthropic/v1/x", "request_too_large")],
)
def test_a_body_that_is_too_large_is_told_in_the_providers_shape(small_rig, path, error_type):
    reply = small_rig.call(path, body=b"x" * (8 * 2**10 + 1))

    assert reply.status == 413
    assert reply.headers["x-budget-reason"] == "body_too_large"
    assert reply.headers["x-should-retry"] == "false"
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == (error_type, "body_too_large")
    assert "8192 bytes" in error["message"]


@pytest.mark.parametrize(
    ("path", "error_type"), [("/gone/v1", "server_error"), ("/gone-too/v1", "api_error")]
)
def test_a_provider_that_cannot_be_reached_keeps_its_shape_and_names_no_budget(
    rig, path, error_type
):
    reply = rig.call(path)

    assert reply.status == 503
    assert "x-budget-reason" not in reply.headers
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == (error_type, "egress_error")
    assert "in the provider's place" in error["message"]
    assert "connection failure" in error["message"]


def test_a_refusal_names_the_call_as_the_logs_do(rig):
    reply = rig.call("/gone/named")

    # The router rewrote the path before it failed.
    assert rig.line("/named")["request_id"] == reply.json()["error"]["decision_id"]


def test_a_providers_own_errors_pass_unchanged(rig):
    body = b'{"error": {"message": "mine"}}'
    for status in (400, 403, 413, 429, 503):
        rig.provider.answer = lambda handler, status=status: rig.provider.json(
            handler, body, status
        )

        reply = rig.call("/openai/own-error")

        assert (reply.status, reply.body) == (status, body)
        assert "x-budget-reason" not in reply.headers


def test_what_is_refused_before_any_route_is_still_json(rig):
    reply = rig.raw(b"GET /openai/..%2fx HTTP/1.1\r\nhost: a\r\n\r\n")

    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert "path_normalization_failed" in reply.json()["error"]["message"]
