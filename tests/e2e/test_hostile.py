"""A provider that misbehaves and agents that do: what is billed is spent, what is not is not."""

import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import IncompleteRead
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from calls import CHAT, MESSAGES, chat, headers_of, message, post, send
from servers import until
from sidecar import Sidecar, agent, running_sidecar

EXACT = 10 * 150 + 5 * 600  # gpt-4o-mini, in nano-USD a token
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
JSON_TYPE = b"content-type: application/json\r\n"
ANSWER = json.dumps({"object": "chat.completion", "model": "gpt-4o-mini", "usage": USAGE}).encode()
STOPPED = (
    b'event: message_start\ndata: {"type":"message_start","message":{"model":"claude-haiku-4-5",'
    b'"usage":{"input_tokens":10,"output_tokens":1}}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":5}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
RESET = struct.pack("ii", 1, 0)


def answer(body: bytes = ANSWER, status: int = 200, headers: bytes = JSON_TYPE) -> bytes:
    """A whole response, as it goes over the wire."""
    head = b"HTTP/1.1 %d X\r\nconnection: close\r\n%scontent-length: %d\r\n\r\n"
    return head % (status, headers, len(body)) + body


@dataclass
class Provider:
    """Answers each request with the pieces that were set, a moment apart."""

    pieces: list[bytes] = field(default_factory=list)
    reset: bool = False
    requests: list[dict[str, str]] = field(default_factory=list)

    def serve(self, handler: StreamRequestHandler) -> None:
        handler.rfile.readline()
        lines = iter(lambda: handler.rfile.readline().decode().strip(), "")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        handler.rfile.read(int(headers.get("content-length", 0)))
        self.requests.append(headers)
        for piece in self.pieces:
            handler.wfile.write(piece)
            time.sleep(0.2)
        if self.reset:
            handler.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


class Server(ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Envoy hangs up on what misbehaves."""


@pytest.fixture(scope="module")
def provider() -> Iterator[tuple[Provider, str]]:
    behaviour = Provider()

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            behaviour.serve(self)

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield behaviour, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def sidecar(provider: tuple[Provider, str]) -> Iterator[Sidecar]:
    upstream = {"upstream": provider[1]}
    providers = {"openai": upstream, "anthropic": upstream}
    with running_sidecar(agents=agent("bot", "1000.00"), providers=providers) as running:
        yield running


@pytest.fixture
def spent_by(sidecar: Sidecar, provider: tuple[Provider, str]) -> Callable[..., tuple[int, str]]:
    """What a call added to the books, and the settlement's outcome and exactness."""

    def spent_by(
        call: Callable[[], object], *pieces: bytes, reset: bool = False
    ) -> tuple[int, str]:
        provider[0].pieces, provider[0].reset = list(pieces), reset
        before, endings = sidecar.balance("bot")[0], len(sidecar.log_lines("settlement"))
        call()
        until(lambda: len(sidecar.log_lines("settlement")) > endings)
        ending = sidecar.log_lines("settlement")[-1]
        spent, held = sidecar.balance("bot")
        assert held == 0
        return spent - before, f"{ending['outcome']} {ending['exactness']}"

    return spent_by


def leave_at(sidecar: Sidecar, sign: bytes, path: str, body: dict[str, Any]) -> None:
    """Make a call, and hang up as soon as these bytes have arrived."""
    host, _, port = sidecar.egress.removeprefix("http://").partition(":")
    data = json.dumps(body).encode()
    headers = headers_of("bot") | {"host": host, "content-length": str(len(data))}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        seen = b""
        while sign not in seen:
            piece = connection.recv(65536)
            assert piece, seen
            seen += piece


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", answer()),
        (b"HTTP/1.0 200 OK\r\n" + JSON_TYPE + b"\r\n" + ANSWER,),
        (answer() + b"and more",),
        (answer(headers=b"Content-Type: Application/JSON ; charset=utf-8\r\n"),),
        (answer(gzip.compress(ANSWER), headers=JSON_TYPE + b"content-encoding: gzip\r\n"),),
        (answer(status=429),),  # an error that tells usage was billed
        (answer(ANSWER.replace(b"gpt-4o-mini", b"g\xffpt")),),
    ],
    ids=["1xx", "HTTP/1.0", "trailing bytes", "spelling", "gzip", "billed 429", "not UTF-8"],
)
def test_whatever_is_told_is_spent_exactly(spent_by, sidecar: Sidecar, pieces) -> None:
    spent, ending = spent_by(lambda: post(sidecar, "bot", chat()), *pieces)
    assert (spent, ending) == (EXACT, "settled exact")


@pytest.mark.parametrize(
    ("pieces", "reset"),
    [
        ((answer(b'{"error":{}}'),), False),
        ((answer(headers=b"content-type: text/plain\r\n"),), False),
        ((answer(headers=b""),), False),
        ((answer(headers=JSON_TYPE + b"content-encoding: gzip\r\n"),), False),
        ((answer(status=302, body=b""),), False),
        ((answer(status=502, body=b"{}"),), False),
        ((answer()[:-3],), True),
        ((b"HTTP/1.1 100 Continue\r\n\r\n",), True),  # read, then lost: Envoy's own 503
        ((answer(headers=b"content-type: te\xffxt\r\n"),), False),
    ],
    ids=["200 error", "text", "no type", "no gzip", "302", "502", "cut", "100 reset", "not UTF-8"],
)
def test_what_is_not_told_is_spent_as_estimated(spent_by, sidecar: Sidecar, pieces, reset) -> None:
    def call() -> None:
        with suppress(IncompleteRead):
            post(sidecar, "bot", chat())

    spent, ending = spent_by(call, *pieces, reset=reset)
    assert spent > EXACT
    assert ending == "settled unknown"


@pytest.mark.parametrize("status", [400, 429, 529])
def test_a_refusal_that_an_agent_does_not_read_to_its_end_is_free(
    spent_by, sidecar: Sidecar, status: int
) -> None:
    whole = answer(b'{"error":{"message":"no"}}', status)
    sign = b'{"error"'
    cut = whole.index(sign) + len(sign)

    spent, ending = spent_by(
        lambda: leave_at(sidecar, sign, CHAT, chat()), whole[:cut], b"", b"", whole[cut:]
    )

    assert (spent, ending) == (0, "released unknown")


def test_an_answer_that_an_agent_does_not_read_to_its_end_is_charged(
    spent_by, sidecar: Sidecar
) -> None:
    spent, ending = spent_by(
        lambda: leave_at(sidecar, b'"obj', CHAT, chat()), answer()[:-100], b"", b"", answer()[-100:]
    )
    assert spent > EXACT
    assert ending == "settled unknown"


def test_who_hangs_up_at_anthropics_last_event_pays_for_the_answer_alone(
    spent_by, sidecar: Sidecar
) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
    head += b"transfer-encoding: chunked\r\n\r\n"
    events = b"%x\r\n%s\r\n" % (len(STOPPED), STOPPED)

    spent, ending = spent_by(
        lambda: leave_at(sidecar, b'"message_stop"', MESSAGES, message(stream=True)),
        *(head + events, b"", b"", b"0\r\n\r\n"),
    )

    assert (spent, ending) == (10 * 1_000 + 5 * 5_000, "settled exact")


def test_no_header_makes_a_free_request_another_one_for_the_provider(
    sidecar: Sidecar, provider: tuple[Provider, str]
) -> None:
    provider[0].pieces = [answer(b"{}")]
    names = ["x-http-method-override", "x-original-url", "x-rewrite-url", "x-method-override"]

    reply = send(
        sidecar,
        None,
        headers_of("bot") | dict.fromkeys(names, "/v1/chat/completions"),
        path="/openai/v1/models",
        method="GET",
    )

    assert reply.status == 200
    assert provider[0].requests[-1].keys().isdisjoint(names)
