"""A neighbour on the same host, and the providers' keys: what it cannot reach, and where they are.

The neighbour is a process of another user on the same loopback, as an agent beside the sidecar is.
"""

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from os import geteuid
from pathlib import Path
from typing import Any

import pytest
from calls import MESSAGES, chat, headers_of, message, post, send
from processes import environment, family
from servers import until
from sidecar import CREDENTIALS, Sidecar, agent, key_of, running_sidecar

NOBODY = 65534
OLD, NEW = "sk-of-yesterday-0123456789", CREDENTIALS["SANDBOX_ANTHROPIC_CREDENTIAL"]
_LISTENS = "0A"


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar(start=False, agents=agent("bot")) as made:
        # Anybody may come as far as the data_dir: what is tested is what that itself lets through.
        made.dir.chmod(0o755)
        file = made.dir / "anthropic.key"
        file.write_text(OLD)
        file.chmod(0o600)
        made.config["providers"]["anthropic"]["credential"] = {"file": str(file)}
        del made.env["SANDBOX_ANTHROPIC_CREDENTIAL"]
        made.data_dir.mkdir(mode=0o755)
        (made.data_dir / "run").mkdir(mode=0o777)
        made.start()
        yield made


def processes(sidecar: Sidecar) -> set[int]:
    return family(sidecar.process.pid)


def sockets_of(pids: set[int]) -> set[str]:
    """The inodes of all sockets that these processes have open."""
    found = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if match := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())):
                    found.add(match[1])
    return found


def tcp_ports(inodes: set[str]) -> set[int]:
    """Where they listen."""
    ports = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and words[3] == _LISTENS:
                ports.add(int(words[1].rpartition(":")[2], 16))
    return ports


def unix_listeners(inodes: set[str]) -> set[str]:
    """The paths at which they listen; `@...` is open to everybody on the host."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return {words[7] for words in lines if len(words) > 7 and words[6] in inodes}


def as_neighbour(script: str, *words: str) -> Any:
    """Run Python as a user who owns nothing here; what it printed as JSON.

    It gives its rights away itself, once it has read its modules: the file system need not let that
    user read a Python. (`subprocess` with `user=` forks, and gRPC's threads do not survive a fork.)
    """
    if geteuid() != 0:
        pytest.skip("not root: that another user is kept out has not been tried")
    done = subprocess.run(
        [sys.executable, "-c", BECOME_NEIGHBOUR + script, *words],
        cwd="/",
        env={},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


BECOME_NEIGHBOUR = f"""
import http.client, json, os, socket, sys
"a".encode("idna")
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
"""
CONNECT = """
told = {}
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
            told[path] = "connected"
        except OSError as error:
            told[path] = type(error).__name__
print(json.dumps(told))
"""
READ = """
told = {}
for path in sys.argv[1:]:
    try:
        told[path] = len(os.listdir(path) if os.path.isdir(path) else open(path, "rb").read())
    except OSError as error:
        told[path] = type(error).__name__
print(json.dumps(told))
"""
ASK = """
told = []
for method, port, path, key in json.loads(sys.argv[1]):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"authorization": "Bearer " + key} if key else {}
    connection.request(method, path, b"{}" if method == "POST" else None, headers)
    told.append(connection.getresponse().status)
    connection.close()
print(json.dumps(told))
"""


def test_nothing_listens_on_tcp_but_the_three_addresses_of_the_config(sidecar: Sidecar) -> None:
    inodes = sockets_of(processes(sidecar))
    configured = {int(where.rpartition(":")[2]) for where in sidecar.config["listen"].values()}

    assert tcp_ports(inodes) == configured
    run = sidecar.data_dir / "run"
    names = ("check.sock", "sink.sock", "hop.sock", "envoy.sock", "store.sock")
    assert unix_listeners(inodes) == {str(run / name) for name in names}


def test_another_user_reaches_neither_check_nor_sink_nor_hop_nor_admin_nor_store(
    sidecar: Sidecar,
) -> None:
    """With no settlement to be sent, and none to be written into the store, none is forged."""
    paths = sorted(unix_listeners(sockets_of(processes(sidecar))))
    assert len(paths) == 5

    behind_the_folder = as_neighbour(CONNECT, *paths)
    # And by their own mode, should somebody open the folders one day.
    sidecar.data_dir.chmod(0o755)
    (sidecar.data_dir / "run").chmod(0o755)
    try:
        by_themselves = as_neighbour(CONNECT, *paths)
    finally:
        sidecar.data_dir.chmod(0o700)
        (sidecar.data_dir / "run").chmod(0o700)

    assert behind_the_folder == dict.fromkeys(paths, "PermissionError")
    assert by_themselves == dict.fromkeys(paths, "PermissionError")
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(paths[0])  # so it was not for want of a listener


def test_another_user_reads_no_file_folder_or_environment(sidecar: Sidecar) -> None:
    pids = processes(sidecar)
    inside = [sidecar.data_dir, *sidecar.data_dir.rglob("*"), sidecar.dir / "anthropic.key"]
    paths = [str(path) for path in inside if not path.is_socket()]
    paths += [f"/proc/{pid}/{name}" for pid in pids for name in ("environ", "mem", "fd")]

    assert set(as_neighbour(READ, *paths).values()) == {"PermissionError"}


def test_another_user_on_the_same_loopback_is_refused_at_every_port(sidecar: Sidecar) -> None:
    port = {name: int(at.rpartition(":")[2]) for name, at in sidecar.config["listen"].items()}
    log_service = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
    asked = [
        ("GET", port["admin"], "/v1/budgets", ""),
        ("GET", port["admin"], "/v1/budgets", "a-guessed-token"),
        ("GET", port["admin"], "/", ""),
        ("POST", port["admin"], "/v1/budgets", ""),
        ("GET", port["metrics"], "/v1/budgets", ""),
        ("POST", port["egress"], "/openai/v1/chat/completions", ""),
        ("POST", port["egress"], "/openai/v1/chat/completions", "xa_a_guessed_key"),
        ("POST", port["egress"], log_service, ""),
        ("POST", port["egress"], "/envoy.service.auth.v3.Authorization/Check", ""),
        ("POST", port["egress"], "/quitquitquit", ""),
        ("GET", port["egress"], "/config_dump", ""),
    ]

    statuses = as_neighbour(ASK, json.dumps(asked))

    assert statuses == [401, 401, 401, 401, 404, 401, 401, 403, 403, 403, 403]


def test_whoever_holds_the_metrics_port_takes_no_descriptors_that_calls_need(
    sidecar: Sidecar,
) -> None:
    address, _, port = sidecar.config["listen"]["metrics"].partition(":")
    descriptors = Path(f"/proc/{sidecar.pid_of('service')}/fd")
    before = len(list(descriptors.iterdir()))

    with contextlib.ExitStack() as held:
        for _ in range(400):
            held.enter_context(socket.create_connection((address, int(port)), 10))
        taken = len(list(descriptors.iterdir())) - before

        assert post(sidecar, "bot", chat()).status == 200
    assert taken < 200, "64 connections, and what calls meanwhile took"


def test_admin_listens_on_loopback_unless_the_config_says_else(sidecar: Sidecar) -> None:
    del sidecar  # (of the defaults, not of this one)
    from extauthz.config.model import ListenBlock  # noqa: PLC0415

    listen = ListenBlock()
    assert {listen.egress.host, listen.metrics.host, listen.admin.host} == {"127.0.0.1"}


def test_a_key_that_is_replaced_by_a_rename_is_used_under_load_without_a_restart(
    sidecar: Sidecar,
) -> None:
    body, envoy = json.dumps(message()).encode(), sidecar.pid_of("envoy")
    statuses: list[int] = []
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            statuses.append(send(sidecar, body, headers_of("bot"), path=MESSAGES).status)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(statuses) >= 6)
        before = set(statuses)
        beside = sidecar.dir / "anthropic.key.next"
        beside.write_text(NEW)
        beside.chmod(0o600)
        beside.replace(sidecar.dir / "anthropic.key")
        until(lambda: statuses[-6:] == [200] * 6)
    finally:
        done.set()
        for thread in threads:
            thread.join()

    assert before == {401}, "the sandbox knows the new key only"
    assert set(statuses) == {401, 200}, "nobody was refused for the sake of the change"
    assert sidecar.pid_of("envoy") == envoy


def memory_has(pid: int, words: list[bytes]) -> set[bytes]:
    """Which of these stand anywhere in a process's memory."""
    found = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if not line.split()[1].startswith("rw"):
                continue
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            with contextlib.suppress(OSError, OverflowError, ValueError):
                memory.seek(start)
                data = memory.read(end - start)
                found |= {word for word in words if word in data}
    return found


def test_the_providers_keys_are_in_envoys_memory_and_in_no_other_of_the_sidecar(
    sidecar: Sidecar,
) -> None:
    send(sidecar, json.dumps(message()).encode(), headers_of("bot"), path=MESSAGES)
    words = [value.encode() for value in CREDENTIALS.values()]
    try:
        of_envoy = memory_has(sidecar.pid_of("envoy"), words)
    except PermissionError:
        pytest.skip("this user may not read another process's memory: it has not been searched")

    assert of_envoy == set(words), "else this search finds nothing anywhere"
    for pid in family(sidecar.pid_of("service")) | {sidecar.pid_of("store")}:
        assert memory_has(pid, words) == set()
        assert not any(value in environment(pid) for value in CREDENTIALS.values())


def test_the_providers_keys_stand_in_nothing_that_is_written_printed_or_asked_for(
    sidecar: Sidecar,
) -> None:
    send(sidecar, json.dumps(message()).encode(), headers_of("bot"), path=MESSAGES)
    refused = send(sidecar, b"{", headers_of("bot"), path=MESSAGES)
    sidecar.until_settled()
    printed = subprocess.run(
        [sys.executable, "-m", "extauthz", "config", "envoy", "-c", str(sidecar.config_path)],
        env=sidecar.env,
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    files = [path for path in sidecar.data_dir.rglob("*") if path.is_file()]
    told = {
        "config envoy": printed,
        "Envoy's admin": b"".join(
            admin(sidecar, path)
            for path in ("/config_dump", "/config_dump?include_eds", "/certs", "/server_info")
        ),
        "metrics": http_get(sidecar.metrics_url + "/metrics"),
        "a refusal": refused.body,
        "logs": sidecar.output.encode(),
        "data_dir": b"".join(path.read_bytes() for path in files),
    }
    assert b"provider_anthropic" in told["Envoy's admin"]

    for place, text in told.items():
        for secret in (*CREDENTIALS.values(), OLD, key_of("bot")):
            assert secret.encode() not in text, place


def admin(sidecar: Sidecar, path: str) -> bytes:
    """What Envoy's admin interface tells to who may ask it."""

    class Unix(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(sidecar.data_dir / "run" / "envoy.sock"))

    with contextlib.closing(Unix("envoy", timeout=30)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()


def http_get(url: str) -> bytes:
    host, _, path = url.removeprefix("http://").partition("/")
    with contextlib.closing(http.client.HTTPConnection(host, timeout=30)) as connection:
        connection.request("GET", f"/{path}")
        return connection.getresponse().read()
