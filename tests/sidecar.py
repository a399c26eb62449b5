"""A whole sidecar for tests: `extauthz up` with real Valkey and Envoy, before a sandbox provider.

Everything listens on free loopback ports and in a short directory of its own, so that tests run
side by side; leaving the context stops every process.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import openai
import yaml
from servers import until

from extauthz.config import load
from extauthz.identity import hash_key
from extauthz.ledger import Row
from extauthz.sandbox import Sandbox, start_sandbox
from extauthz.server.archives import archives_of
from extauthz.server.store_url import store_url
from extauthz.service.books import all_rows
from extauthz.store.redis import RedisStore

CREDENTIALS = {
    "SANDBOX_OPENAI_CREDENTIAL": "sk-sandbox-openai-credential",
    "SANDBOX_ANTHROPIC_CREDENTIAL": "sk-sandbox-anthropic-credential",
}
START_SECONDS_MAX = 90
BUSY_SECONDS_MAX = 20
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def free_port() -> int:
    """One below those that the system gives to outgoing connections, so that none takes it."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def children_of(pid: int) -> list[int]:
    """The processes that a process has started; its threads come and go meanwhile."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            children += map(int, (task / "children").read_text().split())
    return children


def key_of(agent: str) -> str:
    """Each test agent's virtual key."""
    return f"xa_test_key_of_{agent}"


def agent(name: str, limit: str = "1.00", **settings: Any) -> dict[str, Any]:
    """A config block of an agent with one daily budget, unless `budgets` says otherwise."""
    block: dict[str, Any] = {"budgets": [{"limit": limit, "window": "day"}], **settings}
    return {name: {"keys": [hash_key(key_of(name))], **block}}


def merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, block by block."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value
    return result


@dataclass(slots=True)
class Sidecar:
    """A running `extauthz up`."""

    dir: Path
    config: dict[str, Any]
    sandbox: Sandbox
    env: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)
    clients: ExitStack = field(default_factory=ExitStack)
    """closes what `openai` and `anthropic` made: an unclosed socket is a warning, so an error"""
    _started_at: int = 0
    """where in the output this start begins"""

    @property
    def egress(self) -> str:
        return f"http://{self.config['listen']['egress']}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.config['listen']['metrics']}"

    @property
    def data_dir(self) -> Path:
        return self.dir / "data"

    @property
    def config_path(self) -> Path:
        return self.dir / "extauthz.yaml"

    @property
    def output(self) -> str:
        """What `up` and the service have written: JSON lines but for up's own few words."""
        return (self.dir / "up.log").read_text(errors="replace")

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        """The structured log lines of one kind, `decision` or `settlement`."""
        whole = self.output.rpartition("\n")[0]  # (the last line may be half written)
        lines = (json.loads(line) for line in whole.splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("event") == event]

    def write_config(self) -> None:
        self.config_path.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def start(self, *, wait: bool = True, start_new_session: bool = False) -> None:
        self.write_config()
        with (self.dir / "up.log").open("ab") as log:
            self._started_at = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "extauthz", "up", "-c", str(self.config_path)],
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=start_new_session,
            )
        if wait:
            self.until_ready()

    def until_ready(self) -> None:
        def up() -> bool:
            assert self.process.poll() is None, f"up ended: {self.output[-3000:]}"
            return "extauthz is up" in self.output[self._started_at :]

        until(up, START_SECONDS_MAX)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop `up` and wait; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)

    def pid_of(self, name: str) -> int:
        """The process of a child: `store`, `service` or `envoy`."""
        sign = {"store": "valkey-server", "service": "\0serve\0", "envoy": "envoy.yaml"}[name]
        for pid in children_of(self.process.pid):
            with contextlib.suppress(FileNotFoundError):
                if sign in Path(f"/proc/{pid}/cmdline").read_text():
                    return pid
        raise ProcessLookupError(name)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid_of(name), number)

    def openai(self, agent_name: str, **options: Any) -> openai.OpenAI:
        """The official SDK, unmodified but for base_url and key; no retries unless asked for."""
        client = openai.OpenAI(
            api_key=key_of(agent_name),
            **{
                "base_url": f"{self.egress}/openai/v1",
                "max_retries": 0,
                "timeout": 60,
                **options,
            },
        )
        return self.clients.enter_context(client)

    def anthropic(self, agent_name: str, **options: Any) -> anthropic.Anthropic:
        client = anthropic.Anthropic(
            api_key=key_of(agent_name),
            **{
                "base_url": f"{self.egress}/anthropic",
                "max_retries": 0,
                "timeout": 60,
                **options,
            },
        )
        return self.clients.enter_context(client)

    def metric(self, name: str, /, **labels: str) -> float:
        """The sum of a metric's series that have these labels; 0.0 if there is none.

        Budgets have no series while the store does not answer: they are asked for again.
        """
        found = self._samples(name)
        deadline = time.monotonic() + BUSY_SECONDS_MAX
        while not found and name.startswith("extauthz_budget_") and time.monotonic() < deadline:
            time.sleep(0.1)
            found = self._samples(name)
        return sum((value for has, value in found if labels.items() <= has.items()), 0.0)

    def _samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=30) as response:
            text = response.read().decode()
        return [
            (dict(_LABEL.findall(label_text)), float(value))
            for found, label_text, value in _SAMPLE.findall(text)
            if found == name
        ]

    def standing(self) -> dict[str, Any]:
        """Every budget in its current window and the open reservations, as the admin listener
        tells it; a store that is busy for a moment is asked again."""
        token = (self.data_dir / "admin_token").read_text().strip()
        request = urllib.request.Request(
            f"http://{self.config['listen']['admin']}/v1/budgets",
            headers={"authorization": f"Bearer {token}"},
        )
        deadline = time.monotonic() + BUSY_SECONDS_MAX
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    standing: dict[str, Any] = json.load(response)
                    return standing
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 503 or time.monotonic() > deadline:
                        raise
            time.sleep(0.1)

    def balance(self, agent_name: str, window: str = "day") -> tuple[int, int]:
        """(spent, held) in nano-USD of an agent's budget."""
        for budget in self.standing()["budgets"]:
            if (budget["scope"], budget["name"], budget["window"]) == ("agent", agent_name, window):
                return nanousd(budget["spent"]), nanousd(budget["held"])
        raise LookupError(agent_name)

    def rows(self, org: str = "default") -> list[Row]:
        """The org's books, archived or not."""
        config = load(self.config_path)

        async def read() -> list[Row]:
            store = RedisStore.from_url(store_url(config))
            try:
                archive = archives_of(config)(org)
                return [row async for row in all_rows(archive, store, org)]
            finally:
                await store.close()

        return asyncio.run(read())

    def until_settled(self, seconds: float = 60) -> None:
        """Wait until no reservation is open.

        Not by the metrics: while the store does not answer, they tell of no reservations at all.
        """
        until(lambda: self.standing()["open_reservations"] == 0, seconds)


def nanousd(text: str) -> int:
    """`0.0000099` as 9900."""
    whole, _, fraction = text.partition(".")
    return int(whole) * 10**9 + int(fraction.ljust(9, "0"))


def default_config(sandbox_url: str) -> dict[str, Any]:
    """Both providers behind the sandbox, no agents yet."""
    return {
        "data_dir": "./data",
        "listen": {
            "egress": f"127.0.0.1:{free_port()}",
            "metrics": f"127.0.0.1:{free_port()}",
            "admin": f"127.0.0.1:{free_port()}",
        },
        "providers": {
            "openai": {
                "api": "openai",
                "upstream": sandbox_url,
                "credential": {"env": "SANDBOX_OPENAI_CREDENTIAL"},
            },
            "anthropic": {
                "api": "anthropic",
                "upstream": sandbox_url,
                "credential": {"env": "SANDBOX_ANTHROPIC_CREDENTIAL"},
            },
        },
        "timeouts": {"drain": "5s"},
        # (most tests are about what is admitted as it is; those of `fit` say so)
        "defaults": {"estimate": "strict"},
        "agents": {},
    }


@contextmanager
def running_sidecar(*, start: bool = True, **changes: Any) -> Iterator[Sidecar]:
    """A sidecar and its sandbox; `changes` are laid over the default config."""
    directory = Path(tempfile.mkdtemp(prefix="xa-", dir="/tmp"))
    try:
        with start_sandbox(
            openai_key=CREDENTIALS["SANDBOX_OPENAI_CREDENTIAL"],
            anthropic_key=CREDENTIALS["SANDBOX_ANTHROPIC_CREDENTIAL"],
        ) as sandbox:
            config = merged(default_config(sandbox.base_url), changes)
            sidecar = Sidecar(directory, config, sandbox, {**os.environ, **CREDENTIALS})
            if start:
                sidecar.start()
            try:
                yield sidecar
            finally:
                sidecar.clients.close()
                if hasattr(sidecar, "process") and sidecar.process.poll() is None:
                    sidecar.process.send_signal(signal.SIGTERM)
                    try:
                        sidecar.process.wait(30)
                    except subprocess.TimeoutExpired:
                        sidecar.process.kill()
                        sidecar.process.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
