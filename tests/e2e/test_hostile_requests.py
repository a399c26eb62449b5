"""Requests that are made to be read in two ways, or to lead elsewhere: tests/hostile_requests.yaml.

Written to sockets byte by byte, because every HTTP library would put most of them right.
"""

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import yaml
from calls import CHAT, Answer, chat, headers_of, post, send
from sidecar import Sidecar, agent, key_of, running_sidecar

from extauthz.sandbox.app import DEFAULT_GOOGLE_KEY
from extauthz.sandbox.sigv4 import ACCESS_KEY_ID, SECRET_ACCESS_KEY

CORPUS: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).parents[1].joinpath("hostile_requests.yaml").read_text()
)
BODY = json.dumps(chat()).encode()
HUNG_UP = "hangs up"
_marks = itertools.count(1)


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents = agent("bot", "1000.00") | agent("greedy", "0.01", max_in_flight=1)
    with running_sidecar(agents=agents, start=False) as running:
        running.env["SANDBOX_GOOGLE_CREDENTIAL"] = DEFAULT_GOOGLE_KEY
        running.env["AWS_ACCESS_KEY_ID"] = ACCESS_KEY_ID
        running.env["AWS_SECRET_ACCESS_KEY"] = SECRET_ACCESS_KEY
        openai = running.config["providers"]["openai"]
        google = {**openai, "credential": {"env": "SANDBOX_GOOGLE_CREDENTIAL"}}
        running.config["providers"] |= {
            "gemini": {**google, "api": "gemini"},
            "vertex": {**google, "api": "vertex"},
            "azure": {**openai, "api": "azure", "deployments": {"mine": "gpt-4o-mini"}},
            "cohere": {**openai, "api": "cohere"},
            "bedrock": {**openai, "api": "bedrock", "credential": {"aws_region": "us-east-1"}},
        }
        openai["max_audio_seconds"] = 600
        running.start()
        yield running


def headers_for(case: dict[str, Any], body: bytes, mark: str) -> list[tuple[str, str]]:
    """The usual ones, with the case's own laid over them."""
    usual = headers_of("bot") | {"host": "a", "content-length": str(len(body)), "x-mark": mark}
    if "h2" in case:
        del usual["host"]
    given: list[tuple[str, str]] = []
    for line in case.get("headers", []):
        if line == "@many":
            given += [(f"x-{number}", "1") for number in range(300)]
        elif line == "@long":
            given.append(("x-long", "x" * 200_000))
        else:
            at = line.find(":", 1)
            given.append((line[:at], line[at + 1 :].strip()) if at > 0 else (line, ""))
    replaced = {name.lower() for name, _ in given}
    filled = [
        (name, value.replace("@bearer", f"Bearer {key_of('bot')}").replace("@key", key_of("bot")))
        for name, value in given
        if value or (":" not in name and name not in usual)
    ]
    if "framed" in case and "@body" not in case["framed"]:
        usual.pop("content-length")
    kept = [(name, value) for name, value in usual.items() if name not in replaced]
    return kept + filled


def framed(text: str) -> bytes:
    """The bytes behind the headers, with the usual body where the text asks for it."""
    chunks = {
        "@chunks": b"\r\n".join(b"1\r\n%c" % byte for byte in BODY),
        "@chunk": b"%x\r\n%s" % (len(BODY), BODY),
        "@extended": b'%x;a="b;c"\r\n%s' % (len(BODY), BODY),
        "@body": BODY,
    }
    data = text.encode()
    for name, bytes_ in chunks.items():
        data = data.replace(name.encode(), bytes_)
    return data


def attempt(sidecar: Sidecar, case: dict[str, Any]) -> Answer | None:
    """Do it; None where the connection ends without an answer."""
    mark = f"hostile-{next(_marks)}"
    body = case["body"].encode() if "body" in case else BODY
    headers = headers_for(case, body, mark)
    host, _, port = sidecar.egress.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        if "h2" in case:
            return over_http2(connection, case["h2"], headers, body, mark)
        line = case.get("line", f"POST {CHAT} HTTP/1.1")
        head = "".join(
            f"{name}: {value}\r\n" if value or name == "host" else f"{name}\r\n"
            for name, value in headers
        )
        data = framed(case["framed"]) if "framed" in case else body
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(f"{line}\r\n{head}\r\n".encode("latin-1") + data)
        response = HTTPResponse(connection, method=line.partition(" ")[0])
        try:
            response.begin()
            answer = response.read()
        except (HTTPException, ConnectionResetError):
            return None
        return answered(response.status, response.getheaders(), answer, mark)


def answered(status: int, headers: list[tuple[str, str]], body: bytes, mark: str) -> Answer:
    return Answer(status, {name.lower(): value for name, value in headers}, body, mark)


def over_http2(
    connection: socket.socket,
    pseudo: dict[str, str],
    headers: list[tuple[str, str]],
    body: bytes,
    mark: str,
) -> Answer | None:
    lax = h2.config.H2Configuration(
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        header_encoding="utf-8",
    )
    client = h2.connection.H2Connection(lax)
    client.initiate_connection()
    client.send_headers(1, [*pseudo.items(), *headers])
    client.send_data(1, body, end_stream=True)
    connection.sendall(client.data_to_send())
    status, got, answer = 0, [], b""
    while data := connection.recv(65536):
        for event in client.receive_data(data):
            match event:
                case h2.events.ResponseReceived(headers=found):
                    got = [(str(name), str(value)) for name, value in found]
                    status = int(dict(got)[":status"])
                case h2.events.DataReceived(data=piece):
                    answer += piece
                case h2.events.StreamEnded():
                    return answered(status, got, answer, mark)
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    return None
    return None


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["try"])
def test_it_is_refused_by_name_or_is_what_it_is_billed_as(
    sidecar: Sidecar, case: dict[str, Any]
) -> None:
    left_before, billed_before = len(sidecar.sandbox.requests()), lines_billed(sidecar)

    answer = attempt(sidecar, case)

    left = sidecar.sandbox.requests()[left_before:]
    if case["expect"] == HUNG_UP:
        assert answer is None or (answer.status, answer.reason) == (400, "malformed_request")
        assert left == []
        return
    assert answer is not None
    if case["expect"] in ("is billed", "is refused once"):
        (seen,) = left
        assert seen["headers"]["x-mark"] == answer.mark
        assert seen["path"] == case.get("sees", "/v1/chat/completions")
        assert not set(case.get("hears not", [])) & set(seen["header_names"])
        if "body" in case:
            assert seen["body_sha256"] == sha256(case["body"].encode()).hexdigest()
        billed = case["expect"] == "is billed"
        assert answer.status == (200 if billed else 500), answer.body[:300]
        assert lines_billed(sidecar) - billed_before == billed
        return
    status, _, reason = case["expect"].partition(" ")
    assert (answer.status, answer.reason) == (int(status), reason), answer.body[:400]
    assert left == []
    assert answer.headers["x-should-retry"] == "false"
    told = json.loads(answer.body)
    error = told.get("error", told)  # (Bedrock and Cohere have no object around theirs)
    assert error.get("code", reason) in (reason, status, int(status))
    assert len(error["message"]) > 40, "it says what to do"


@pytest.mark.parametrize("name", ["application/grpc", "Application/GRPC", "application/grpc+json"])
def test_what_calls_itself_grpc_is_refused_and_not_by_a_200(sidecar: Sidecar, name: str) -> None:
    left_before = len(sidecar.sandbox.requests())

    for path in (CHAT, "/openai/v1/moderations", "/nowhere"):
        answer = send(sidecar, BODY, headers_of("bot") | {"content-type": name}, path=path)

        assert (answer.status, answer.reason) == (415, "unparseable_body")
    assert len(sidecar.sandbox.requests()) == left_before


def lines_billed(sidecar: Sidecar) -> int:
    return len(sidecar.sandbox.bill()["lines"])


def test_bodies_of_nobody_cost_no_memory_and_a_flood_of_them_nobody_an_answer(
    sidecar: Sidecar,
) -> None:
    envoy, body = sidecar.pid_of("envoy"), b"x" * 20_000_000
    nobody = headers_of("nobody")
    before, done = resident_mb(envoy), threading.Event()

    def flood() -> set[int | None]:
        statuses: set[int | None] = set()
        while not done.is_set() or not statuses:
            try:
                statuses.add(send(sidecar, body, nobody).status)
            except ConnectionError:  # answered, and closed with the rest of the body unread
                statuses.add(None)
        return statuses

    with ThreadPoolExecutor(8) as pool:
        floods = [pool.submit(flood) for _ in range(8)]
        try:
            answers = [post(sidecar, "bot", chat()).status for _ in range(20)]
            grown = resident_mb(envoy) - before
        finally:
            done.set()

    assert answers == [200] * 20
    assert set.union(*(one.result() for one in floods)) <= {401, None}
    assert grown < 120, f"{grown} MB, of 160 MB that were on their way"


def test_one_agents_large_bodies_cost_others_no_answer_and_bounded_memory(
    sidecar: Sidecar,
) -> None:
    envoy, service = sidecar.pid_of("envoy"), sidecar.pid_of("service")
    body, done = b'{"x":"' + b"x" * 31_000_000 + b'"}', threading.Event()
    before, most = resident_mb(envoy) + resident_mb(service), 0

    def upload() -> set[str | None]:
        reasons: set[str | None] = set()
        while not done.is_set() or not reasons:
            with suppress(ConnectionError):  # answered, and closed with the rest unread
                reasons.add(send(sidecar, body, headers_of("greedy")).reason)
        return reasons

    with ThreadPoolExecutor(8) as pool:
        uploads = [pool.submit(upload) for _ in range(8)]
        try:
            statuses = []
            for _ in range(15):
                statuses.append(post(sidecar, "bot", chat(user="y" * 100_000)).status)
                most = max(most, resident_mb(envoy) + resident_mb(service))
        finally:
            done.set()

    assert statuses == [200] * 15
    reasons = set.union(*(one.result() for one in uploads))
    assert reasons <= {"too_many_in_flight", "unparseable_body", "body_too_large"}
    assert "too_many_in_flight" in reasons
    assert most - before < 500, f"{most - before} MB"


async def test_250_calls_at_once_on_one_connection_are_all_served(sidecar: Sidecar) -> None:
    async with httpx.AsyncClient(
        http1=False, http2=True, timeout=120, limits=httpx.Limits(max_connections=1)
    ) as client:

        async def call() -> int:
            url = f"{sidecar.egress}{CHAT}"
            return (await client.post(url, content=BODY, headers=headers_of("bot"))).status_code

        assert await asyncio.gather(*(call() for _ in range(250))) == [200] * 250


def resident_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def test_after_all_that_the_ledger_is_the_bill(sidecar: Sidecar) -> None:
    sidecar.until_settled()

    assert sidecar.balance("bot") == (sidecar.sandbox.total_nanousd(), 0)
    assert not sidecar.log_lines("error")
