"""A provider that speaks HTTP/2 behind TLS: what it answered once is charged once, however it came.

Every call is made over HTTP/2 too. The provider counts what it has answered.
"""

import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from calls import GPT, chat, headers_of
from certificates import Certificates, can_be_made
from h2.errors import ErrorCodes
from servers import until
from sidecar import Sidecar, agent, nanousd, running_sidecar

COST = 10 * 150 + 5 * 600  # nano-USD
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
WHOLE = json.dumps({"model": GPT, "choices": [], "usage": USAGE}).encode()
HALF = b'data: {"choices":[{"delta":{"content":"hi"}}],"usage":null}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = HALF + b"data: " + WHOLE + b"\n\n" + DONE

pytestmark = pytest.mark.skipif(not can_be_made(), reason="openssl makes the certificates")


@dataclass
class Stream:
    """One request to the provider, and the means to answer it."""

    connection: h2.connection.H2Connection
    id: int
    case: str
    attempt: int
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, *pieces: bytes, kind: str = "application/json", ends: bool = True) -> None:
        self.connection.send_headers(self.id, [(":status", "200"), ("content-type", kind)])
        for piece in pieces:
            self.connection.send_data(self.id, piece)
        if self.trailers:
            self.connection.send_headers(self.id, self.trailers, end_stream=True)
        elif ends:
            self.connection.end_stream(self.id)

    def stream(self, *pieces: bytes, ends: bool = True) -> None:
        self.answer(*pieces, kind="text/event-stream", ends=ends)

    def reset(self, code: ErrorCodes) -> None:
        self.connection.reset_stream(self.id, code)


def by_byte(stream: Stream) -> None:
    stream.stream(*(STREAM[at : at + 1] for at in range(len(STREAM))))


def with_trailers(stream: Stream) -> None:
    stream.trailers.append(("x-checksum", "1"))
    stream.stream(STREAM)


def refused_once(stream: Stream) -> None:
    if stream.attempt == 1:
        stream.reset(ErrorCodes.REFUSED_STREAM)
    else:
        stream.answer(WHOLE)


def cut_half_way(stream: Stream) -> None:
    stream.stream(HALF, ends=False)
    stream.reset(ErrorCodes.INTERNAL_ERROR)


ONCE: dict[str, Callable[[Stream], None]] = {
    "whole": lambda stream: stream.answer(WHOLE),
    "streamed": lambda stream: stream.stream(STREAM),
    "split at every byte": by_byte,
    "with trailers": with_trailers,
    "the first stream refused": refused_once,
}
REFUSED: dict[str, Callable[[Stream], None]] = {
    "every stream refused": lambda stream: stream.reset(ErrorCodes.REFUSED_STREAM),
}
IN_DOUBT: dict[str, Callable[[Stream], None]] = {
    "cut half-way": cut_half_way,
    "reset before the headers": lambda stream: stream.reset(ErrorCodes.INTERNAL_ERROR),
}
CASES = {**ONCE, **REFUSED, **IN_DOUBT}
NOT_AT_FIRST, NEVER = "connected at the second time", "never connected"
NAMES = {what: f"case{at}" for at, what in enumerate([*CASES, NOT_AT_FIRST, NEVER])}


class Provider(ThreadingTCPServer):
    """Takes connections from the `first_taken`th on: those before end within the handshake."""

    daemon_threads = True

    def __init__(self, certificates: Certificates, first_taken: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificates.certificate, certificates.key)
        self.context.set_alpn_protocols(["h2", "http/1.1"])
        self.first_taken = first_taken
        self.connections = 0
        self.spoken: list[str | None] = []
        self.attempts: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Envoy hangs up as it likes."""


class Handler(BaseRequestHandler):
    server: Provider

    def handle(self) -> None:
        self.server.connections += 1
        if self.server.connections < self.server.first_taken:
            return
        with self.server.context.wrap_socket(self.request, server_side=True) as tls:
            self.server.spoken.append(tls.selected_alpn_protocol())
            config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
            connection = h2.connection.H2Connection(config)
            connection.initiate_connection()
            tls.sendall(connection.data_to_send())
            cases: dict[int, str] = {}
            while data := tls.recv(65536):
                for event in connection.receive_data(data):
                    match event:
                        case h2.events.RequestReceived(stream_id=stream, headers=headers):
                            cases[stream] = dict(headers)["x-case"]
                        case h2.events.StreamEnded(stream_id=stream):
                            self._answer(connection, stream, cases[stream])
                tls.sendall(connection.data_to_send())

    def _answer(self, connection: h2.connection.H2Connection, stream: int, case: str) -> None:
        self.server.attempts[case] += 1
        answer = CASES.get(case, ONCE["whole"])
        answer(Stream(connection, stream, case, self.server.attempts[case]))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.made_in(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def providers(certificates: Certificates) -> Iterator[dict[str, Provider]]:
    made = {
        "steady": Provider(certificates, 1),
        "late": Provider(certificates, 2),
        "away": Provider(certificates, float("inf")),
    }
    for one in made.values():
        threading.Thread(target=one.serve_forever, daemon=True).start()
    yield made
    for one in made.values():
        one.shutdown()
        one.server_close()


@pytest.fixture(scope="module")
def sidecar(providers: dict[str, Provider], certificates: Certificates) -> Iterator[Sidecar]:
    agents: dict[str, Any] = {}
    for name in NAMES.values():
        agents |= agent(name)
    blocks = {
        name: {"api": "openai", "upstream": one.url, "ca_file": str(certificates.ca)}
        for name, one in providers.items()
    }
    with running_sidecar(agents=agents, providers=blocks) as running:
        yield running


def call(sidecar: Sidecar, what: str, provider: str = "steady") -> tuple[int, bytes]:
    """One call over HTTP/2, read to its end; status and body, or 0 where it was cut."""
    path = f"{sidecar.egress}/{provider}/v1/chat/completions"
    headers = headers_of(NAMES[what]) | {"x-case": what}
    body = chat(stream="stream" in what or "half" in what or "byte" in what or "trailers" in what)
    with httpx.Client(http1=False, http2=True, timeout=60) as client:
        try:
            answer = client.post(path, json=body, headers=headers)
        except httpx.HTTPError:
            return 0, b""
    return answer.status_code, answer.content


def ending(sidecar: Sidecar, what: str) -> tuple[str, str, int]:
    """How the only call of the case's agent was settled, and at what; nothing is held."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        lines = sidecar.log_lines("settlement")
        found[:] = [line for line in lines if line.get("agent") == NAMES[what]]
        return bool(found)

    until(is_there)
    (line,) = found
    spent, held = sidecar.balance(NAMES[what])
    assert held == 0
    return line["outcome"], line["exactness"], spent


@pytest.mark.parametrize("what", ONCE)
def test_what_was_answered_over_http2_is_charged_once(
    sidecar: Sidecar, providers: dict[str, Provider], what: str
) -> None:
    status, body = call(sidecar, what)
    # (the event of usage that the client did not ask for is taken out where it comes in one piece)
    assert (status, body) in [(200, each) for each in (WHOLE, HALF + DONE, STREAM)]
    assert body != STREAM or what == "split at every byte"
    assert ending(sidecar, what) == ("settled", "exact", COST)
    assert providers["steady"].attempts[what] == (2 if "refused" in what else 1)
    assert set(providers["steady"].spoken) == {"h2"}


def test_a_connection_that_fails_and_is_made_again_is_charged_once(
    sidecar: Sidecar, providers: dict[str, Provider]
) -> None:
    assert call(sidecar, NOT_AT_FIRST, "late") == (200, WHOLE)
    assert ending(sidecar, NOT_AT_FIRST) == ("settled", "exact", COST)
    assert providers["late"].connections == 2
    assert providers["late"].attempts[NOT_AT_FIRST] == 1


def test_connections_that_all_fail_cost_nothing(
    sidecar: Sidecar, providers: dict[str, Provider]
) -> None:
    assert call(sidecar, NEVER, "away")[0] == 503
    assert ending(sidecar, NEVER) == ("released", "unknown", 0)
    assert providers["away"].connections == 2


@pytest.mark.parametrize("what", REFUSED)
def test_streams_that_are_all_refused_cost_nothing(
    sidecar: Sidecar, providers: dict[str, Provider], what: str
) -> None:
    assert call(sidecar, what)[0] == 503
    assert ending(sidecar, what) == ("released", "unknown", 0)
    assert providers["steady"].attempts[what] == 2


@pytest.mark.parametrize("what", IN_DOUBT)
def test_a_stream_that_is_reset_is_charged_its_reservation_and_not_sent_again(
    sidecar: Sidecar, providers: dict[str, Provider], what: str
) -> None:
    call(sidecar, what)
    outcome, _, spent = ending(sidecar, what)
    (decision,) = (d for d in sidecar.log_lines("decision") if d["agent"] == NAMES[what])
    assert (outcome, spent) == ("settled", nanousd(decision["estimate_usd"]))
    assert providers["steady"].attempts[what] == 1
