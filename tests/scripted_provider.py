"""A provider that answers each call with the bytes it was told to, piece by piece.

A call says by its header `x-case` which answer it is for.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

JSON, SSE = "application/json", "text/event-stream; charset=utf-8"
FRAMES = "application/vnd.amazon.eventstream"


@dataclass(frozen=True)
class Answer:
    """Pieces that go over the wire one by one; one without an end is cut off behind them.

    One of HTTP/1.0 has no length, and ends where the connection does.
    """

    pieces: Iterable[bytes]
    content_type: str = JSON
    encoding: str = ""
    status: int = 200
    trailers: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    ends: bool = True
    http1_0: bool = False


def by_byte(data: bytes) -> list[bytes]:
    """Each byte alone."""
    return [data[at : at + 1] for at in range(len(data))]


def stored_brotli(data: bytes) -> bytes:
    """RFC 7932, as one meta-block that is not compressed (of at most 64 KiB)."""
    assert 0 < len(data) <= 65536
    return ((len(data) - 1) << 4 | 1 << 20).to_bytes(3, "little") + data + b"\x03"


class _Server(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answers: Sequence[Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Envoy hangs up on what is broken."""


class _Handler(StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.rfile.readline()
        lines = iter(lambda: self.rfile.readline().decode().strip(), "")
        sent = dict(line.lower().split(": ", 1) for line in lines)
        self.rfile.read(int(sent.get("content-length", 0)))
        answer = self.server.answers[int(sent["x-case"])]
        headers = {
            "connection": "close",
            "content-type": answer.content_type,
            **({} if answer.http1_0 else {"transfer-encoding": "chunked"}),
            **({"content-encoding": answer.encoding} if answer.encoding else {}),
            **answer.headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        version = "1.0" if answer.http1_0 else "1.1"
        self.wfile.write(f"HTTP/{version} {answer.status} X\r\n{head}\r\n".encode())
        for piece in answer.pieces:
            self.wfile.write(piece if answer.http1_0 else b"%x\r\n%b\r\n" % (len(piece), piece))
        if answer.ends and not answer.http1_0:
            self.wfile.write(b"0\r\n" + answer.trailers + b"\r\n")


@contextmanager
def scripted_provider(answers: Sequence[Answer]) -> Iterator[str]:
    """Its URL; the answer to a call is the one whose number stands in `x-case`."""
    with _Server(answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
