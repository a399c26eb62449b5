"""What an agent can say, and what of it a provider gets to hear."""

import re

import pytest

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def path_of(rig):
    """The path that Check and the provider saw: one spelling for both."""
    (request,) = rig.check.requests
    (received,) = rig.provider.received
    return request.attributes.request.http.path, received.path


def test_a_providers_name_is_taken_off_the_path_and_the_rest_is_kept(rig):
    rig.call("/openai/v1/chat/completions?a=1&b=%2F")

    assert path_of(rig) == (
        "/openai/v1/chat/completions?a=1&b=%2F",
        "/v1/chat/completions?a=1&b=%2F",
    )


def test_a_base_path_is_put_before_it(rig):
    rig.call("/plain/v1/models", method="GET", body=None)

    assert path_of(rig) == ("/plain/v1/models", "/base/path/v1/models")


@pytest.mark.parametrize(
    ("spelling", "seen"),
    [
        ("/plain/a/../b", ("/plain/b", "/base/path/b")),
        ("/plain/%2e%2e/openai/x", ("/openai/x", "/x")),
        ("/openai/../plain/x", ("/plain/x", "/base/path/x")),
        ("//plain//a///b", ("/plain/a/b", "/base/path/a/b")),
        ("/plain\\a", ("/plain/a", "/base/path/a")),
        ("/plain/%61%41", ("/plain/aA", "/base/path/aA")),
        ("http://elsewhere.example/plain/x", ("/plain/x", "/base/path/x")),
    ],
)
def test_a_path_has_one_spelling_for_routes_for_check_and_for_the_provider(rig, spelling, seen):
    rig.raw(f"GET {spelling} HTTP/1.1\r\nhost: a\r\n\r\n".encode())

    assert path_of(rig) == seen


@pytest.mark.parametrize(
    "path", ["/", "/openai", "/openai?x=1", "/openaix/v1", "/OPENAI/v1", "/v1"]
)
def test_a_path_of_no_provider_is_refused_with_what_to_do(rig, path):
    reply = rig.call(path)

    assert reply.status == 403
    assert reply.headers["x-budget-reason"] == "unknown_route"
    error = reply.json()["error"]
    assert error["code"] == "unknown_route"
    assert error["type"] == "permission_error"
    assert error["param"] is None
    assert "/openai/, /anthropic/" in error["message"]
    assert rig.check.requests == rig.provider.received == []


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("CONNECT api.openai.com:443 HTTP/1.1", 403),
        ("CONNECT /openai/v1 HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1", 404),
        ("GET /openai/..%2fplain HTTP/1.1", 400),
        ("GET /openai/a%5cb HTTP/1.1", 400),
        ("GET /openai/x#fragment HTTP/1.1", 400),
        ("GET /openai/x HTTP/1.0", 426),
        ("GET /openai/x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket", 403),
        ("POST /openai/x HTTP/1.1\r\ncontent-length: 0\r\ntransfer-encoding: chunked", 400),
        ("POST /openai/x HTTP/1.1\r\ncontent-length: 0\r\ncontent-length: 1", 400),
    ],
)
def test_what_could_mean_two_things_or_open_a_tunnel_is_refused(rig, request_line, status):
    reply = rig.raw(f"{request_line}\r\nhost: a\r\n\r\n".encode())

    assert reply.status == status
    assert rig.check.requests == rig.provider.received == []


def test_the_agents_credentials_reach_check_and_no_provider(rig):
    names = ["authorization", "x-api-key", "api-key", "x-goog-api-key", "proxy-authorization"]
    sent = [(name, "Bearer agent") for name in names]

    for provider in ("openai", "anthropic", "plain"):
        rig.call(f"/{provider}/v1", headers=sent)

    for request in rig.check.requests:
        headers = request.attributes.request.http.headers
        assert {name: headers[name] for name in names} == dict(sent)
    received = [
        {name: one.values(name) for name in names if one.values(name)}
        for one in rig.provider.received
    ]
    assert received == [
        {"authorization": ["Bearer sk-provider"]},
        {"x-api-key": ["sk-ant-1"]},
        {},
    ]


def test_the_providers_credential_is_in_no_log(rig):
    rig.call("/openai/secret")

    entry = rig.entry("/secret").to_dict()
    rig.line("/secret")
    assert "sk-provider" not in str(entry)
    assert "sk-provider" not in rig.settings.access_log_file.read_text()
    assert b"sk-provider" not in rig.admin("/config_dump")


def test_envoy_mints_the_id_of_a_call_and_keeps_it_for_the_logs(rig):
    rig.call("/openai/id", headers=[("x-request-id", "mine")])

    (request,) = rig.check.requests
    minted = request.attributes.request.http.headers["x-request-id"]
    assert UUID.fullmatch(minted)
    assert rig.metadata("/id")["extauthz.call"]["request_id"] == minted
    assert rig.line("/id")["request_id"] == minted


def test_a_provider_hears_nothing_of_this_network_or_of_envoy(rig):
    rig.call(
        headers=[
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-client-cert", "By=me"),
            ("forwarded", "for=10.0.0.1"),
            ("via", "1.1 me"),
            ("cookie", "a=b"),
            ("x-request-id", "mine"),
            ("x-mine", "1"),
        ]
    )

    (received,) = rig.provider.received
    assert sorted(name for name, _ in received.headers) == [
        "accept-encoding",
        "authorization",
        "content-length",
        "host",
        "x-mine",
    ]


def test_headers_that_command_envoy_or_this_service_are_taken_off_before_check(rig):
    sent = ["x-envoy-max-retries", "x-envoy-original-path", "x-budget-reason", "x-extauthz-edits"]

    rig.call(headers=[(name, "9") for name in sent] + [("x-forwarded-for", "10.0.0.1")])

    (request,) = rig.check.requests
    headers = request.attributes.request.http.headers
    assert [name for name in sent if name in headers] == []
    assert "x-forwarded-for" not in headers
    assert headers["x-envoy-external-address"] == "127.0.0.1"  # Envoy's own: nobody is internal


def test_an_agent_cannot_order_retries_that_the_provider_would_bill(rig):
    rig.provider.answer = lambda handler: rig.provider.json(handler, status=503)

    rig.call(
        "/openai/retries",
        headers=[
            ("x-envoy-max-retries", "5"),
            ("x-envoy-retry-on", "5xx,retriable-4xx"),
            ("x-envoy-hedge-on-per-try-timeout", "true"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "1"),
        ],
    )

    assert len(rig.provider.received) == 1
    assert rig.entry("/retries").common_properties.upstream_request_attempt_count == 1


def test_a_header_with_an_underscore_is_dropped_before_check(rig):
    rig.call(headers=[("x_api_key", "agent"), ("x-mine", "1")])

    (request,) = rig.check.requests
    assert "x_api_key" not in request.attributes.request.http.headers
    (received,) = rig.provider.received
    assert received.values("x_api_key") == []
    assert received.values("x-mine") == ["1"]


def test_an_answer_is_asked_for_without_compression(rig):
    rig.call(headers=[("accept-encoding", "gzip, br"), ("accept-encoding", "zstd")])

    assert rig.provider.received[0].values("accept-encoding") == ["identity"]


def test_the_host_header_is_the_providers_with_its_port(rig):
    rig.call("/named/v1", headers=[("host", "elsewhere.example")])

    assert rig.provider.received[0].values("host") == [f"localhost:{rig.provider.port}"]


def test_a_response_is_the_providers_own_with_nothing_of_envoy(rig):
    rig.provider.answer = lambda handler: rig.provider.json(
        handler, x_request_id="req_1", openai_processing_ms="12", retry_after="3"
    )

    reply = rig.call("/openai/own")

    assert reply.headers["server"] == "provider/1"
    assert reply.headers["x-request-id"] == "req_1"
    assert [name for name in reply.headers if name.startswith("x-envoy")] == []
    assert rig.entry("/own").response.response_headers == {
        "content-type": "application/json",
        "x-request-id": "req_1",
        "openai-processing-ms": "12",
        "retry-after": "3",
    }
    assert rig.line("/own")["provider_request_id"] == "req_1"


@pytest.mark.parametrize(("count", "status"), [(80, 200), (250, 431)])
def test_headers_are_bounded_in_number(rig, count, status):
    assert rig.call(headers=[(f"x-{i}", "1") for i in range(count)]).status == status
