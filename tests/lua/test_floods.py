"""floods.lua under a LuaJIT: who passes, and who is one too many."""

from pathlib import Path
from typing import Any

import lupa.luajit21 as lupa
import pytest

SOURCE = Path(__file__).parents[2] / "extauthz" / "bootstrap" / "floods.lua"
TOKENS, DENIALS, PER_SECOND = 1024, 1024, 64
DRIVE = """
local id = 0
local function handle(headers, metadata, tls)
  return {
    headers = function() return {
      get = function(_, name) return headers[name] end,
      replace = function(_, name, value) headers[name] = value end,
    } end,
    streamInfo = function() return {dynamicMetadata = function() return {
      get = function(_, namespace) return metadata[namespace] end,
    } end} end,
    connection = function() return {ssl = function() return tls end} end,
  }
end
return function(headers, answer, verified, certified)
  id = id + 1
  local metadata = {["extauthz.call"] = {request_id = "r" .. id}}
  if verified then metadata["envoy.filters.http.jwt_authn"] = {issuer = {}} end
  local tls
  if certified ~= nil then tls = {peerCertificatePresented = function() return certified end} end
  envoy_on_request(handle(headers, metadata, tls))
  mark = headers["x-extauthz-flood"]
  if mark then return false end
  if answer then envoy_on_response(handle(answer, metadata, tls)) end
  return true
end
"""
KNOWN = {"x-budget-decision-id": "d"}
DENIED = KNOWN | {"x-budget-reason": "budget_exhausted"}
NOBODY = KNOWN | {"x-budget-reason": "unknown_agent"}
UNMETERED = KNOWN | {"x-budget-reason": "unmetered_endpoint"}
OUTAGE = KNOWN | {"x-budget-reason": "store_unavailable"}
ERROR = {"x-budget-reason": "service_unavailable"}


class Worker:
    """One worker of Envoy, with a clock of its own."""

    def __init__(self) -> None:
        self.lua = lupa.LuaRuntime()
        self.now = 1_000
        self.lua.globals().os.time = lambda: self.now
        self.lua.execute(SOURCE.read_text())
        self._drive = self.lua.execute(DRIVE)

    def passes(
        self,
        key: str | None,
        answer: dict[str, str] | None = NOBODY,
        header: str = "authorization",
        verified: bool = False,
        certified: bool | None = None,
        framing: dict[str, str] | None = None,
    ) -> bool:
        headers = self.lua.table_from(({} if key is None else {header: key}) | (framing or {}))
        answered = None if answer is None else self.lua.table_from(answer)
        return bool(self._drive(headers, answered, verified, certified))

    def is_flooded(self) -> None:
        while self.passes("Bearer nobody"):
            pass


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_floods_have_so_many_calls_at_once_and_so_many_a_second(worker: Worker) -> None:
    assert [worker.passes(f"Bearer {n}") for n in range(TOKENS + 1)] == [True] * TOKENS + [False]
    worker.now += 1
    assert sum(worker.passes(None) for _ in range(TOKENS)) == PER_SECOND
    worker.now -= 100  # a clock that was set back gives nothing, and takes nothing
    assert not worker.passes(None)
    worker.now += 1
    assert sum(worker.passes(None) for _ in range(TOKENS)) == PER_SECOND


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key", "x-goog-api-key"])
@pytest.mark.parametrize("first", [KNOWN, DENIED], ids=["let in", "denied for its budget"])
def test_whoever_check_knows_passes_in_a_flood(
    worker: Worker, header: str, first: dict[str, str]
) -> None:
    worker.passes("k", first, header)
    worker.is_flooded()

    assert all(worker.passes("k", KNOWN, header) for _ in range(1000))
    assert not worker.passes("l", header=header)


@pytest.mark.parametrize("denial", [DENIED, UNMETERED], ids=["budget", "endpoint"])
def test_an_agent_that_is_denied_again_and_again_has_so_many_calls_and_takes_nobody_elses(
    worker: Worker, denial: dict[str, str]
) -> None:
    worker.passes("Bearer loop", KNOWN)
    worker.passes("Bearer other", KNOWN)
    worker.passes("Bearer loop", denial)

    assert sum(worker.passes("Bearer loop", denial) for _ in range(2000)) == DENIALS
    assert all(worker.passes("Bearer other", KNOWN) for _ in range(2000))
    assert sum(worker.passes("Bearer nobody") for _ in range(2000)) == TOKENS
    worker.now += 1
    assert sum(worker.passes("Bearer loop", denial) for _ in range(2000)) == PER_SECOND
    worker.now += 1
    assert worker.passes("Bearer loop", KNOWN), "its room has come back"
    assert all(worker.passes("Bearer loop", KNOWN) for _ in range(2000))


@pytest.mark.parametrize(
    ("framing", "is_large"),
    [
        ({}, False),
        ({"content-length": "9999"}, False),
        ({"content-length": "10000"}, True),
        ({"transfer-encoding": "chunked"}, True),
    ],
)
def test_a_large_body_is_not_kept_while_its_call_waits(
    worker: Worker, framing: dict[str, str], is_large: bool
) -> None:
    worker.is_flooded()

    assert not worker.passes("Bearer nobody", framing=framing)
    assert worker.lua.globals().mark == ("strangers-body" if is_large else "strangers")


def test_an_outage_is_no_denial(worker: Worker) -> None:
    worker.passes("Bearer k", KNOWN)

    assert all(worker.passes("Bearer k", OUTAGE) for _ in range(2 * DENIALS))


def test_the_first_calls_of_an_agent_cost_the_strangers_nothing(worker: Worker) -> None:
    assert all(worker.passes(f"Bearer {number}", KNOWN) for number in range(5 * TOKENS))
    assert sum(worker.passes("Bearer nobody") for _ in range(2 * TOKENS)) == TOKENS


@pytest.mark.parametrize("answer", [NOBODY, ERROR, OUTAGE, UNMETERED, {}, None], ids=str)
def test_what_check_has_not_said_makes_nobody_known(worker: Worker, answer: Any) -> None:
    worker.passes("Bearer k", answer)
    worker.is_flooded()

    assert not worker.passes("Bearer k")


def test_a_key_that_was_revoked_is_a_strangers_again(worker: Worker) -> None:
    worker.passes("Bearer k", KNOWN)
    worker.is_flooded()

    assert worker.passes("Bearer k", NOBODY)
    assert not worker.passes("Bearer k")


def test_a_signature_of_aws_is_known_by_its_key_id(worker: Worker) -> None:
    signed = "AWS4-HMAC-SHA256 Credential={}/20261124/us-east-1/bedrock/aws4_request, Signature={}"
    worker.passes(signed.format("xa_k", "one"), KNOWN)
    worker.is_flooded()

    assert worker.passes(signed.format("xa_k", "another"))
    assert not worker.passes(signed.format("xa_l", "one"))


def test_who_was_verified_by_envoy_is_no_stranger(worker: Worker) -> None:
    worker.is_flooded()

    assert worker.passes(None, verified=True)
    assert worker.passes("Bearer k", certified=True)
    assert not worker.passes("Bearer k", certified=False)


def test_what_is_remembered_is_bounded_and_who_calls_now_and_then_stays(worker: Worker) -> None:
    for number in range(50_000):
        assert worker.passes(f"Bearer {number}", KNOWN)
        if number % 5_000 == 0:
            assert worker.passes("Bearer regular", KNOWN)
    worker.is_flooded()

    assert worker.passes("Bearer regular")
    assert not worker.passes("Bearer 1")
    assert worker.lua.execute("return collectgarbage('count')") < 16_000
    long = "Bearer " + "x" * 5_000
    worker.passes(long, KNOWN)
    assert not worker.passes(long), "a key of 5 kB is not remembered"
