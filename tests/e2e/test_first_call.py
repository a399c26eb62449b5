"""The spine: a call through real Envoy is reserved, settled, and survives the service's death."""

from collections.abc import Iterator

import pytest
from servers import until
from sidecar import Sidecar, agent, running_sidecar

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar(agents=agent("bot") | agent("killed")) as running:
        yield running


def test_a_call_is_settled_at_the_providers_own_bill(sidecar: Sidecar) -> None:
    client = sidecar.openai("bot")

    client.chat.completions.create(
        model="gpt-4o-mini", messages=MESSAGES, max_tokens=50, user="bot"
    )
    sidecar.until_settled()

    assert sidecar.balance("bot") == (sidecar.sandbox.total_nanousd("bot"), 0)


@pytest.mark.parametrize("asked", [False, True], ids=["unasked", "asked"])
@pytest.mark.parametrize("delay_ms", ["0", "30"])
def test_a_stream_tells_its_usage_to_those_who_asked_for_it(
    sidecar: Sidecar, asked: bool, delay_ms: str
) -> None:
    before = sidecar.balance("bot")[0]
    with sidecar.openai("bot").chat.completions.create(
        model="gpt-4o-mini",
        messages=MESSAGES,
        max_tokens=50,
        user="bot",
        stream=True,
        extra_headers={"x-sandbox-chunk-delay-ms": delay_ms},
        **({"stream_options": {"include_usage": True}} if asked else {}),
    ) as stream:
        told = [chunk.usage is not None for chunk in stream if not chunk.choices]
    sidecar.until_settled()

    assert told == ([True] if asked else [])
    assert sidecar.balance("bot") == (sidecar.sandbox.total_nanousd("bot"), 0)
    assert sidecar.balance("bot")[0] > before


def test_a_call_whose_service_was_killed_is_settled_by_the_next_one(sidecar: Sidecar) -> None:
    client = sidecar.openai("killed")
    with client.chat.completions.create(
        model="gpt-4o-mini",
        messages=MESSAGES,
        max_tokens=50,
        user="killed",
        stream=True,
        extra_headers={"x-sandbox-chunk-delay-ms": "300", "x-sandbox-chunks": "4"},
    ) as stream:
        next(iter(stream))
        old = sidecar.pid_of("service")
        sidecar.kill("service")
        for _ in stream:
            pass
    until(lambda: _service_of(sidecar) not in (None, old))

    until(lambda: sidecar.balance("killed")[1] == 0)

    assert sidecar.balance("killed") == (sidecar.sandbox.total_nanousd("killed"), 0)


def _service_of(sidecar: Sidecar) -> int | None:
    try:
        sidecar.metric("extauthz_build_info")
        return sidecar.pid_of("service")
    except OSError:
        return None
