"""One caller's huge or contrived body delays nobody else's Check, breaks nothing, fills nothing."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from calls import CHAT, GPT, MESSAGES, Answer, chat, post, received
from sidecar import Sidecar, agent, children_of, running_sidecar

MB = 1_000_000
ATTACKERS = 2
CALLS_MEANWHILE = 25
SERVICE_MB_MAX = 1500
READER_MB_MAX = 2100
_HEAD = b'{"model":"gpt-4o-mini","max_tokens":9,'


def _keys(count: int) -> bytes:
    return b",".join(b'"%08d":1' % number for number in range(count))


def _parts(count: int) -> bytes:
    return b",".join([b'{"type":"text"}'] * count)


# Made when they are wanted: together they are 300 MB.
CONTRIVED: dict[str, Callable[[], bytes]] = {
    "1.8 million root keys, 22 MB": lambda: _HEAD + _keys(1_800_000) + b"}",
    "1.8 million nested keys": lambda: _HEAD + b'"metadata":{' + _keys(1_800_000) + b"}}",
    "27 MB of empty lists": lambda: _HEAD + b'"messages":[' + b"[]," * 9_000_000 + b"[]]}",
    "1.4 million empty messages": lambda: _HEAD + b'"messages":[' + b"{}," * 1_400_000 + b"{}]}",
    "1.4 million parts": lambda: (
        _HEAD + b'"messages":[{"role":"user","content":[' + _parts(1_400_000) + b"]}]}"
    ),
    "nested 10 million deep": lambda: _HEAD + b'"metadata":' + b"[" * 10_000_000,
    "closed as well": lambda: _HEAD + b'"metadata":' + b"[" * 1_400_000 + b"]" * 1_400_000 + b"}",
    "objects nested": lambda: (
        _HEAD + b'"metadata":' + b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000
    ),
    "30 MB of quotes": lambda: b'{"' + b'"' * 30 * MB,
    "30 MB of backslashes": lambda: _HEAD + b'"stream":true,"user":"' + b"\\" * 30 * MB + b'"}',
    "30 MB of colons": lambda: (
        _HEAD + b'"stream":true,"user":"' + b":" * 30 * MB + b'","metadata":{}}'
    ),
    "30 MB of blanks": lambda: _HEAD + b" " * 30 * MB + b'"seed":1}',
    "numbers without end": lambda: _HEAD + b'"seed":' + b"9" * 30 * MB + b"}",
    "2 million numbers": lambda: _HEAD + b'"stop":[' + b"0.1234567890123," * 1_900_000 + b"0]}",
    "30 MB of zeros": lambda: b"\0" * 30 * MB,
}


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    agents = agent("attacker", "100000.00") | agent("bystander", "100.00")
    with running_sidecar(agents=agents) as running:
        yield running


def peak_mb(pid: int) -> int:
    """The most memory a process has ever had; 0 for one that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize("what", CONTRIVED)
def test_a_contrived_body_gets_a_clear_answer(sidecar: Sidecar, what: str) -> None:
    pid = sidecar.pid_of("service")

    answer = post(sidecar, "attacker", CONTRIVED[what]())

    # Handled, or refused by name: nothing that this program or Envoy did not foresee.
    assert answer.status in (200, 400, 413), answer.body[:300]
    if answer.status != 200:
        assert answer.reason in ("unparseable_body", "ambiguous_body", "body_too_large") or (
            received(sidecar.sandbox, answer.mark) is not None
        )
    assert post(sidecar, "bystander", chat()).status == 200
    assert sidecar.pid_of("service") == pid


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "what", ["1.8 million root keys, 22 MB", "27 MB of empty lists", "1.8 million nested keys"]
)
def test_others_are_answered_while_it_is_under_way(sidecar: Sidecar, what: str) -> None:
    """The attack goes on until the bystander has been answered: it was under way all the time."""
    body, done = CONTRIVED[what](), threading.Event()
    sent = [threading.Event() for _ in range(ATTACKERS)]

    def attack(number: int) -> list[Answer]:
        answers = []
        while not done.is_set() or not answers:
            sent[number].set()
            answers.append(post(sidecar, "attacker", body))
        return answers

    with ThreadPoolExecutor(ATTACKERS) as pool:
        attacks = [pool.submit(attack, number) for number in range(ATTACKERS)]
        try:
            assert all(event.wait(30) for event in sent)
            small = [post(sidecar, "bystander", chat()) for _ in range(CALLS_MEANWHILE)]
            still_under_way = [not one.done() for one in attacks]
        finally:
            done.set()
        attacked = [answer for one in attacks for answer in one.result()]

    assert [answer.status for answer in small] == [200] * CALLS_MEANWHILE
    assert all(still_under_way)
    # 503: an attacker waits for its own turn only, and Envoy not for ever.
    assert {answer.status for answer in attacked} <= {200, 400, 413, 503}
    assert not sidecar.log_lines("error")


def test_another_agents_large_body_is_read_while_it_is_under_way(sidecar: Sidecar) -> None:
    body, done = CONTRIVED["1.8 million nested keys"](), threading.Event()
    large = chat(messages=[{"role": "user", "content": "é " * MB}])

    def attack() -> None:
        while not done.is_set():
            post(sidecar, "attacker", body)

    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(attack)
        try:
            answers = [post(sidecar, "bystander", large) for _ in range(3)]
            assert not under_way.done()
        finally:
            done.set()

    assert [answer.status for answer in answers] == [200] * 3


def test_after_all_that_nothing_is_held_and_memory_was_bounded(sidecar: Sidecar) -> None:
    service = sidecar.pid_of("service")

    sidecar.until_settled()

    assert sidecar.balance("bystander")[0] > 0
    assert peak_mb(service) < SERVICE_MB_MAX
    assert all(peak_mb(reader) < READER_MB_MAX for reader in children_of(service))
    assert post(sidecar, "bystander", chat(model=GPT), path=CHAT).status == 200
    assert post(sidecar, "bystander", b"{}", path=MESSAGES).status == 400
