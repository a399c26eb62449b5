"""Near the end of its memory Envoy refuses and does not die; without the load it serves again."""

import re
import socket
from contextlib import ExitStack, suppress
from typing import Any

import pytest

MIB = 2**20
BODY_BYTES, BODIES = 3 * MIB, 80
REFUSES = "overload.envoy.overload_actions.stop_accepting_requests.active"


def providers(provider: Any, _folder: Any) -> Any:
    from extauthz.bootstrap import ProviderSettings  # noqa: PLC0415

    url = f"http://127.0.0.1:{provider.port}"
    return (
        ProviderSettings("openai", "openai", url),
        ProviderSettings("anthropic", "anthropic", url),
    )


def stat(rig: Any, name: str) -> int:
    found = re.search(rf"^{re.escape(name)}: (\d+)$", rig.admin("/stats").decode(), re.MULTILINE)
    return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def small_rig(start_rig: Any) -> Any:
    """An Envoy with room for about thirty of the bodies beside what it needs itself."""
    return start_rig(providers, max_heap_bytes=160 * MIB)


def test_bodies_beyond_its_memory_are_reset_and_it_lives_and_serves_again(small_rig: Any) -> None:
    assert small_rig.call().status == 200
    head = f"POST /openai/x HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY_BYTES + 1}\r\n\r\n"
    ended = 0
    with ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", small_rig.port), 5))
            for _ in range(BODIES)
        ]
        for one in held:
            one.settimeout(5)
            with suppress(OSError):  # reset, or refused, in the middle
                one.sendall(head.encode() + b"x" * BODY_BYTES)
        ended = small_rig.wait_for(lambda: sum(map(has_ended, held)), "the first to be reset")
        assert small_rig.process.poll() is None

    assert 0 < ended <= BODIES
    small_rig.wait_for(lambda: small_rig.call().status == 200, "it to serve again")
    small_rig.wait_for(
        lambda: (
            not stat(small_rig, "overload.envoy.overload_actions.stop_accepting_requests.active")
        ),
        "the overload to be over",
    )
    assert small_rig.process.poll() is None


def has_ended(connection: socket.socket) -> bool:
    """Whether the other side has answered, or is gone."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_with_no_memory_left_every_call_is_refused_and_may_be_tried_again(full_rig: Any) -> None:
    reply = full_rig.call()

    assert reply.status == 503
    assert reply.headers["x-budget-reason"] == "service_unavailable"
    assert reply.headers["x-should-retry"] == "true"
    assert reply.json()["error"]["code"] == "service_unavailable"
    assert full_rig.check.requests == []
    assert full_rig.provider.received == []
    assert full_rig.process.poll() is None


@pytest.fixture(scope="module")
def full_rig(start_rig: Any) -> Any:
    """An Envoy whose heap is over its limit from the start."""
    rig = start_rig(providers, max_heap_bytes=MIB)
    rig.wait_for(lambda: stat(rig, REFUSES) == 1, "the overload to be seen")
    return rig
