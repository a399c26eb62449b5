"""The access log: every ending has an entry, open streams give signs of life, outages lose none."""

import gzip
import json
import socket
import threading
from dataclasses import replace

import pytest

from extauthz.pb import access_log_pb2
from extauthz.service.call_record import CallRecord, HeldPart
from extauthz.servicers.file_log import read_line
from extauthz.servicers.translate import completed_call


def stream(handler, events, release):
    """An event stream whose events after the first wait for `release`."""
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    for event in events:
        data = f"data: {event}\n\n".encode()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        handler.wfile.flush()
        release.wait(10)
    handler.wfile.write(b"0\r\n\r\n")


def test_an_entry_says_how_a_call_ended_and_by_which_route(rig):
    rig.call("/openai/ended?key=secret", body=b"{}")

    entry = rig.entry("/ended?key=secret")
    assert entry.common_properties.route_name == "openai"
    assert entry.common_properties.upstream_cluster == "provider_openai"
    assert entry.common_properties.upstream_request_attempt_count == 1
    assert entry.response.response_code == 200
    assert entry.response.response_code_details == "via_upstream"


def test_the_files_line_holds_the_same_and_no_path(rig):
    rig.call("/openai/line?key=secret", body=b"{}")

    line = rig.line("/line?key=secret")
    assert line["route"] == "openai"
    assert line["cluster"] == "provider_openai"
    assert (line["code"], line["code_details"], line["flags"]) == (200, "via_upstream", "-")
    assert line["attempts"] == 1
    assert line["upstream"] == f"127.0.0.1:{rig.provider.port}"
    assert line["authz"]["reservation"] == "r-1"
    assert "secret" not in json.dumps(line)
    assert "/line" not in json.dumps(line)


def test_an_open_stream_gives_signs_of_life_with_what_it_has_used_so_far(rig):
    from envoy_data_plane.envoy.data.accesslog.v3 import AccessLogType  # noqa: PLC0415

    release = threading.Event()
    rig.provider.answer = lambda handler: stream(handler, ["one", "two"], release)
    caller = threading.Thread(target=rig.call, args=("/openai/open",))
    caller.start()
    try:
        entry = rig.entry("/open", AccessLogType.DownstreamPeriodic)
        line = rig.line("/open", "DownstreamPeriodic")
    finally:
        release.set()
        caller.join()

    assert entry.common_properties.metadata.filter_metadata["envoy.filters.http.ext_authz"]
    assert line["usage"]["text"] == "data: one\n\n"
    ended = rig.metadata("/open")
    assert ended["extauthz.usage"]["text"] == "data: one\n\ndata: two\n\n"
    assert ended["extauthz.usage"]["complete"] is True


def test_a_client_that_leaves_a_stream_leaves_an_entry_with_what_was_used(rig):
    release = threading.Event()
    rig.provider.answer = lambda handler: stream(handler, ["one", "two"], release)
    try:
        with socket.create_connection(("127.0.0.1", rig.port), timeout=5) as client:
            client.sendall(b"GET /openai/cut HTTP/1.1\r\nhost: a\r\n\r\n")
            seen = b""
            while b"one" not in seen:
                seen += client.recv(4096)
        entry = rig.entry("/cut")
    finally:
        release.set()

    assert entry.response.response_code_details == "downstream_remote_disconnect"
    usage = rig.metadata("/cut")["extauthz.usage"]
    assert usage["text"] == "data: one\n\n"
    assert "complete" not in usage


@pytest.mark.parametrize("cache_control", ["no-store", "no-transform"])
def test_a_compressed_answer_is_plain_for_lua_and_for_the_agent(rig, cache_control):
    body = b'{"usage": {"total_tokens": 3}}'
    rig.provider.answer = lambda handler: rig.provider.json(
        handler, gzip.compress(body), content_encoding="gzip", cache_control=cache_control
    )

    reply = rig.call(f"/openai/gzip-{cache_control}")

    assert reply.body == body
    assert "content-encoding" not in reply.headers
    usage = rig.metadata(f"/gzip-{cache_control}")["extauthz.usage"]
    assert usage["text"] == body.decode()
    assert usage["encoding_seen"] == "none"


def test_a_compressed_request_is_passed_on_as_it_is(rig):
    body = gzip.compress(b"{}")

    rig.call(body=body, headers=[("content-encoding", "gzip")])

    (received,) = rig.provider.received
    assert received.body == body
    assert received.values("content-encoding") == ["gzip"]


def test_entries_wait_for_a_sink_that_is_away(rig):
    rig.call("/openai/before-outage")
    rig.entry("/before-outage")
    rig.sink.stop()
    paths = [f"/openai/outage-{i}" for i in range(20)]
    before = len(rig.lines())
    for path in paths:
        rig.call(path)
    # (each is logged before the sink is back)
    rig.wait_for(lambda: len(rig.lines()) >= before + len(paths) or None, "their lines")

    rig.sink.start()

    for path in paths:
        rig.entry(path.removeprefix("/openai"))


@pytest.mark.parametrize(
    ("path", "status"), [("/openai/said", 200), ("/openai/said", 429), ("/gone/said", 0)]
)
def test_the_file_says_of_a_call_what_the_entry_says(rig, path, status):
    from envoy_data_plane.google.protobuf import Struct  # noqa: PLC0415

    record = CallRecord("i", "d", "o", "bot", "openai", "m", 1, 5, 2, (HeldPart("k", "usd", 3, 4),))

    def allow(*_):
        response = rig.check.allow()
        response.dynamic_metadata = Struct.from_dict({"call": record.to_json()})
        return response

    rig.check.behaviour = allow
    rig.provider.answer = lambda handler: rig.provider.json(handler, b"{}", status=status)
    name = f"/{status}-{path.count('o')}"
    rig.call(f"{path}{name}", body=b"{}")

    entry = access_log_pb2.HTTPAccessLogEntry.FromString(bytes(rig.entry(f"/said{name}")))
    by_entry = completed_call(entry, record)
    by_line = read_line(json.dumps(rig.line(f"/said{name}")).encode())

    assert by_line.left is (status != 0)
    assert abs(by_line.ended_at_ms - by_entry.ended_at_ms) <= 1
    assert abs(by_line.duration_ms - by_entry.duration_ms) <= 1
    same_time = {"ended_at_ms": by_entry.ended_at_ms, "duration_ms": by_entry.duration_ms}
    assert replace(by_line, **same_time) == by_entry
