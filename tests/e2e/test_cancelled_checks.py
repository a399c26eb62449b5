"""Checks whose answer nobody takes: nothing stays held, nothing is spent, no reply is crossed."""

import asyncio
import http.client
import json
import random
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import anthropic
import grpc
import openai
import pytest
from servers import until
from sidecar import Sidecar, agent, key_of, running_sidecar

from extauthz.pb import access_log_pb2, ext_authz_pb2

CHECKS = 2_000
"""Every other one is cancelled."""

MESSAGES: Any = [{"role": "user", "content": "hello"}]
RICH = {f"rich{n}": f"{1000 + n}.00" for n in range(6)}
POOR = {f"poor{n}": f"0.00000{n + 1}" for n in range(6)}
LIMITS = RICH | POOR
"""Each agent has a limit of its own, so that every reply tells whose it is."""


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents = agent("bot") | agent("leaver")
    for name, limit in LIMITS.items():
        agents |= agent(name, limit)
    # Leases of 15 minutes: within a test, nothing comes free by them.
    with running_sidecar(agents=agents, defaults={"hold_wait": "0s"}) as running:
        yield running


@contextmanager
def frozen(sidecar: Sidecar, name: str) -> Iterator[None]:
    sidecar.kill(name, signal.SIGSTOP)
    try:
        yield
    finally:
        sidecar.kill(name, signal.SIGCONT)


def checks_under_way(sidecar: Sidecar) -> int:
    """How many Checks wait for their answer, as Envoy counts them."""

    class Unix(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(sidecar.data_dir / "run" / "envoy.sock"))

    admin = Unix("envoy")
    try:
        admin.request("GET", "/stats?filter=^cluster.check.upstream_rq_active$")
        return int(admin.getresponse().read().decode().rpartition(":")[2])
    finally:
        admin.close()


def send_and_keep_open(sidecar: Sidecar, name: str) -> socket.socket:
    """A request whose client does not wait for the answer: closing the socket is leaving."""
    host, port = sidecar.config["listen"]["egress"].split(":")
    body = json.dumps({"model": "gpt-4o-mini", "messages": MESSAGES, "user": name}).encode()
    client = socket.create_connection((host, int(port)))
    client.sendall(
        b"POST /openai/v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
        + f"authorization: Bearer {key_of(name)}\r\n".encode()
        + f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return client


def assert_untouched(sidecar: Sidecar, name: str) -> None:
    sidecar.until_settled()
    assert sidecar.balance(name) == (0, 0)
    assert sidecar.sandbox.total_nanousd(name) == 0


def test_clients_that_leave_during_check_hold_and_spend_nothing(sidecar: Sidecar) -> None:
    cancelled_before = sidecar.metric("extauthz_checks_cancelled_total")
    with frozen(sidecar, "store"), ExitStack() as clients:
        for _ in range(20):
            clients.enter_context(send_and_keep_open(sidecar, "leaver"))
        until(lambda: checks_under_way(sidecar) > 0)
        clients.close()
        until(lambda: checks_under_way(sidecar) == 0)

    until(lambda: sidecar.metric("extauthz_checks_cancelled_total") > cancelled_before)
    assert_untouched(sidecar, "leaver")


def test_a_store_that_hangs_is_a_503_that_the_sdk_understands(sidecar: Sidecar) -> None:
    with frozen(sidecar, "store"):
        with pytest.raises(openai.InternalServerError) as of_openai:
            sidecar.openai("bot").chat.completions.create(
                model="gpt-4o-mini", messages=MESSAGES, max_tokens=5, user="bot"
            )
        with pytest.raises(anthropic.InternalServerError) as of_anthropic:
            sidecar.anthropic("bot").messages.create(
                model="claude-haiku-4-5", messages=MESSAGES, max_tokens=5
            )

    for error in (of_openai.value, of_anthropic.value):
        assert error.status_code == 503
        assert error.response.headers["x-budget-reason"] == "store_unavailable"
        assert error.response.headers["x-should-retry"] == "true"
        assert int(error.response.headers["retry-after"]) > 0
    assert of_openai.value.code == "store_unavailable"
    assert of_anthropic.value.response.json()["type"] == "error"
    assert_untouched(sidecar, "bot")


def test_a_service_that_hangs_is_a_503_by_envoy_and_holds_nothing_when_it_goes_on(
    sidecar: Sidecar,
) -> None:
    with frozen(sidecar, "service"), pytest.raises(openai.InternalServerError) as refused:
        sidecar.openai("bot").chat.completions.create(
            model="gpt-4o-mini", messages=MESSAGES, max_tokens=5, user="bot"
        )

    assert refused.value.response.headers["x-budget-reason"] == "service_unavailable"
    assert refused.value.code == "service_unavailable"
    assert_untouched(sidecar, "bot")


async def test_a_check_whose_answer_envoy_did_not_take_is_given_back_by_the_access_log(
    sidecar: Sidecar,
) -> None:
    async with Wire(sidecar) as wire:
        assert record_of(await wire.check("rich0", "gave-up")) is not None
        assert sidecar.balance("rich0")[1] > 0

        await wire.tell([entry("gave-up")])

    assert_untouched(sidecar, "rich0")


async def test_a_thousand_cancelled_checks_cross_no_reply_and_hold_nothing(
    sidecar: Sidecar,
) -> None:
    chance = random.Random(7)
    cancelled_before = sidecar.metric("extauthz_checks_cancelled_total")
    ends: list[access_log_pb2.HTTPAccessLogEntry] = []
    async with Wire(sidecar) as wire:
        at_once = asyncio.Semaphore(40)

        async def one(number: int) -> None:
            name = chance.choice(list(LIMITS))
            leaves_after = chance.uniform(0, 0.02) if number % 2 else None
            async with at_once:
                answer = await wire.check(name, f"call-{number}", leaves_after)
            record = None
            if answer is not None:
                record = record_of(answer)
                assert_decision_for(name, answer)
            ends.append(entry(f"call-{number}", record))

        await asyncio.gather(*(one(number) for number in range(CHECKS)))
        cancelled = sidecar.metric("extauthz_checks_cancelled_total") - cancelled_before
        print(f"{cancelled:.0f} of {CHECKS} Checks were cancelled inside the service")
        assert cancelled > 0
        await wire.tell(ends)

    sidecar.until_settled()
    assert {name: sidecar.balance(name) for name in LIMITS} == dict.fromkeys(LIMITS, (0, 0))


def assert_decision_for(name: str, answer: ext_authz_pb2.CheckResponse) -> None:
    """The agent's own limit and, where it was allowed, its own record."""
    record = record_of(answer)
    options = [*answer.ok_response.response_headers_to_add, *answer.denied_response.headers]
    headers = {option.header.key: option.header.value for option in options}
    assert float(headers["x-budget-limit-usd"]) == float(LIMITS[name])
    if name in RICH:
        assert record is not None
        assert json.loads(record)["agent"] == name
    else:
        assert record is None
        assert headers["x-budget-reason"] == "request_too_large"
        assert f"agent/{name}" in answer.denied_response.body


class Wire:
    """Envoy's side of Check and of the access log."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._run = sidecar.data_dir / "run"

    async def __aenter__(self) -> Self:
        self._check_channel = grpc.aio.insecure_channel(f"unix:{self._run}/check.sock")
        self._sink_channel = grpc.aio.insecure_channel(f"unix:{self._run}/sink.sock")
        self._check = self._check_channel.unary_unary(
            "/envoy.service.auth.v3.Authorization/Check",
            request_serializer=ext_authz_pb2.CheckRequest.SerializeToString,
            response_deserializer=ext_authz_pb2.CheckResponse.FromString,
        )
        self._tell = self._sink_channel.stream_unary(
            "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
            request_serializer=access_log_pb2.StreamAccessLogsMessage.SerializeToString,
            response_deserializer=access_log_pb2.StreamAccessLogsResponse.FromString,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._check_channel.close()
        await self._sink_channel.close()

    async def check(
        self, name: str, request_id: str, leaves_after: float | None = None
    ) -> ext_authz_pb2.CheckResponse | None:
        """None if it was cancelled before it was answered."""
        call = self._check(_request(name, request_id))
        if leaves_after is not None:
            await asyncio.sleep(leaves_after)
            call.cancel()
        try:
            return await call
        except asyncio.CancelledError:
            return None

    async def tell(self, entries: list[access_log_pb2.HTTPAccessLogEntry]) -> None:
        message = access_log_pb2.StreamAccessLogsMessage()
        message.http_logs.log_entry.extend(entry.SerializeToString() for entry in entries)
        call = self._tell(iter([message]))
        await call


def _request(name: str, request_id: str) -> ext_authz_pb2.CheckRequest:
    request = ext_authz_pb2.CheckRequest()
    request.attributes.context_extensions["provider"] = "openai"
    call = request.attributes.request.http
    call.method, call.path = "POST", "/openai/v1/chat/completions"
    call.headers["authorization"] = f"Bearer {key_of(name)}"
    call.headers["x-request-id"] = request_id
    call.raw_body = json.dumps(
        {"model": "gpt-4o-mini", "messages": MESSAGES, "max_tokens": 100}
    ).encode()
    return request


def entry(request_id: str, record: str | None = None) -> access_log_pb2.HTTPAccessLogEntry:
    """The end of a call that never left; without a record, Envoy did not take Check's answer."""
    end = access_log_pb2.HTTPAccessLogEntry()
    common = end.common_properties
    common.access_log_type = access_log_pb2.DOWNSTREAM_END
    common.start_time.GetCurrentTime()
    metadata = common.metadata.filter_metadata
    metadata["extauthz.call"].fields["request_id"].string_value = request_id
    if record is not None:
        metadata["envoy.filters.http.ext_authz"].fields["call"].string_value = record
    return end


def record_of(answer: ext_authz_pb2.CheckResponse | None) -> str | None:
    if answer is None or "call" not in answer.dynamic_metadata.fields:
        return None
    return str(answer.dynamic_metadata.fields["call"].string_value)
