"""A flood of keys that nobody has stops at Envoy: Check is asked for a few of them only."""

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest

# Fewer than in production, and slower to come back: Check is a slow one here.
WORKERS, TOKENS, DENIALS, PER_SECOND = 2, 16, 32, 1
FLOOD = 2 * WORKERS * TOKENS


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def rig(start_rig: Any, monkeypatch_module: pytest.MonkeyPatch) -> Any:
    from extauthz.bootstrap import ProviderSettings, floods  # noqa: PLC0415

    def providers(provider: Any, _folder: Any) -> Any:
        url = f"http://127.0.0.1:{provider.port}"
        return (
            ProviderSettings("openai", "openai", url),
            ProviderSettings("anthropic", "anthropic", url),
        )

    numbers = "STRANGERS_MAX, DENIED_MAX, TOKENS_PER_SECOND = {}, {}, {}".format
    source = floods.flood_source()
    fewer = source.replace(numbers(1024, 1024, 64), numbers(TOKENS, DENIALS, PER_SECOND))
    assert fewer != source
    monkeypatch_module.setattr(floods, "flood_source", lambda: fewer)
    rig = start_rig(providers, has_strangers=True, check_timeout=timedelta(seconds=60))

    def decide(request: Any, _context: Any) -> Any:
        key = request.attributes.request.http.headers.get("authorization", "")
        named = {"x_budget_decision_id": "d"}
        if key.startswith("Bearer poor"):
            return rig.check.deny(429, "{}", x_budget_reason="budget_exhausted", **named)
        if not key.startswith("Bearer good"):
            return rig.check.deny(401, "{}", x_budget_reason="unknown_agent", **named)
        response = rig.check.allow()
        refused = rig.check.deny(200, "", **named).denied_response
        response.ok_response.response_headers_to_add = refused.headers
        return response

    rig.check.behaviour = decide
    return rig


def at_once(rig: Any, keys: list[str]) -> list[Any]:
    """The answers to calls that were all sent before the first answer was read."""
    with ExitStack() as stack:
        connections = []
        for key in keys:
            connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=60)
            stack.callback(connection.close)
            headers = {"authorization": f"Bearer {key}"}
            connection.request("POST", "/anthropic/v1/messages", b"{}", headers)
            connections.append(connection)
        return [Answer(response, response.read()) for response in answers(connections)]


def answers(connections: list[http.client.HTTPConnection]) -> Iterator[http.client.HTTPResponse]:
    for connection in connections:
        yield connection.getresponse()


class Answer:
    def __init__(self, response: http.client.HTTPResponse, body: bytes) -> None:
        self.status, self.headers, self.body = response.status, response.headers, body


def test_a_flood_of_strangers_ends_at_envoy_and_whoever_was_let_in_before_passes(rig):
    # Each worker of Envoy remembers for itself: so many at once that each has some.
    assert {answer.status for answer in at_once(rig, ["good"] * 16)} == {200}

    flood = at_once(rig, [f"bad-{number}" for number in range(FLOOD)] + ["good"] * 16)

    assert {answer.status for answer in flood[FLOOD:]} == {200}
    counts = Counter(answer.status for answer in flood[:FLOOD])
    assert set(counts) == {401, 429}
    asked = [one.attributes.request.http.headers["authorization"] for one in rig.check.requests]
    assert counts[401] == sum(key.startswith("Bearer bad") for key in asked)
    refused = next(answer for answer in flood if answer.status == 429)
    assert refused.headers["x-budget-reason"] == "unknown_agent"
    assert refused.headers["x-should-retry"] == "true"
    assert json.loads(refused.body)["type"] == "error", "in the provider's own shape"
    # Only what Check was asked about has a line.
    rig.call("/openai/the-last", headers=[("authorization", "Bearer good")])
    rig.line("/the-last")
    rig.wait_for(lambda: len(rig.lines()) >= len(rig.check.requests), "the lines")
    assert len(rig.lines()) == len(rig.check.requests)
    assert 429 not in {line["code"] for line in rig.lines()}
    # Envoy itself counts the others.
    told = rig.admin("/stats?filter=fault.aborts_injected").decode()
    assert told == f"http.egress.fault.aborts_injected: {counts[429]}\n"


def test_an_agent_that_is_denied_again_and_again_is_bounded_too(rig):
    at_once(rig, ["poor"] * 16)  # from here on it is known to each worker, and known to be denied
    asked = len(rig.check.requests)

    flood = at_once(rig, ["poor"] * (4 * WORKERS * DENIALS))

    assert {answer.status for answer in flood} == {429}
    reasons = Counter(answer.headers["x-budget-reason"] for answer in flood)
    assert set(reasons) == {"budget_exhausted", "loop_suspected"}
    assert reasons["budget_exhausted"] == len(rig.check.requests) - asked >= DENIALS
    assert {answer.status for answer in at_once(rig, ["good"] * 16)} == {200}


def test_the_mark_is_nothing_that_a_client_can_send(rig):
    headers = [("authorization", "Bearer good"), ("x-extauthz-flood", "strangers")]

    assert rig.call("/openai/marked", headers=headers).status == 200
