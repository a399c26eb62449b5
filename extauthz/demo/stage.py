"""Where the demo plays: a sandbox provider and `extauthz up` before it, in a directory of its own.

Leaving the stage stops every process and removes the directory, however it is left.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from extauthz.errors import OperatorError
from extauthz.identity import hash_key, make_key
from extauthz.sandbox import Sandbox, start_sandbox

UNPRICED_MODEL = "acme-large-preview"
"""Offered by the sandbox, at a price that no price list knows."""

_START_SECONDS = 40.0
_STOP_SECONDS = 25.0
_POLL_SECONDS = 0.02
_READY = "extauthz is up"
_TEMP_PATH_MAX = 60  # a unix socket's path has 107 bytes, and more goes into it
_CREDENTIALS = {"openai": "DEMO_OPENAI_CREDENTIAL", "anthropic": "DEMO_ANTHROPIC_CREDENTIAL"}
_FOREIGN = ("OPENAI_", "ANTHROPIC_")


class StageError(OperatorError):
    """The demo cannot be set up, or an act did not end."""


class Interrupted(Exception):  # noqa: N818 - a wish, not an error
    """Ctrl-C, or another signal that asks for the end."""


class Interruption:
    """Turns signals into something that is noticed between two steps.

    An exception out of a signal handler could strike between a process's start and the line that
    remembers it; a flag cannot.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def listen(self) -> None:
        """From now on SIGINT, SIGTERM and SIGHUP only raise the flag."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raise if a signal has come.

        Raises:
            Interrupted: it has.
        """
        if self.signal is not None:
            raise Interrupted

    def _note(self, number: int, _frame: object) -> None:
        self.signal = self.signal or number


class Stage:
    """A running sandbox and sidecar, and what one needs to call and to watch them."""

    sandbox: Sandbox

    def __init__(self, limits: Mapping[str, str], interruption: Interruption) -> None:
        self._limits = dict(limits)
        self._interruption = interruption
        self._cleanup = ExitStack()
        self.keys = {name: make_key(secrets.token_bytes(32)) for name in limits}
        self.egress = self.metrics = self.admin = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    @property
    def openai_url(self) -> str:
        """The `base_url` for OpenAI's SDK."""
        return f"{self.egress}/openai/v1"

    @property
    def anthropic_url(self) -> str:
        """The `base_url` for Anthropic's SDK."""
        return f"{self.egress}/anthropic"

    @property
    def log(self) -> Path:
        """What `up` and the service write: JSON lines but for up's own few words."""
        return self._dir / "up.log"

    @property
    def access_log(self) -> Path:
        """Envoy's file access log, complete once the sidecar has stopped."""
        return self._dir / "data" / "access_log.jsonl"

    @property
    def admin_token(self) -> str:
        """For `/v1/budgets`."""
        return (self._dir / "data" / "admin_token").read_text().strip()

    def until(self, is_true: Callable[[], bool], seconds: float, what: str) -> None:
        """Poll for a condition.

        Raises:
            StageError: it did not come to pass in time.
            Interrupted: a signal came first.
        """
        deadline = time.monotonic() + seconds
        while not is_true():
            self._interruption.check()
            if time.monotonic() > deadline:
                raise StageError(f"demo: {what} did not come to pass within {seconds:.0f} s")
            time.sleep(_POLL_SECONDS)

    def stop_sidecar(self) -> None:
        """SIGTERM: `up` drains and stops its children; then its files are complete."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # its children end with it
            process.wait()

    def _start(self) -> None:
        temp = None if len(tempfile.gettempdir()) <= _TEMP_PATH_MAX else "/tmp"  # noqa: S108
        self._dir = Path(tempfile.mkdtemp(prefix="extauthz-demo-", dir=temp))
        self._cleanup.callback(shutil.rmtree, self._dir, ignore_errors=True)
        credentials = {api: f"sk-demo-{secrets.token_hex(12)}" for api in _CREDENTIALS}
        self._interruption.check()
        self.sandbox = self._cleanup.enter_context(
            start_sandbox(openai_key=credentials["openai"], anthropic_key=credentials["anthropic"])
        )
        self._interruption.check()
        self.sandbox.set_price("openai", UNPRICED_MODEL, input="5.00", output="25.00")
        self._cleanup.callback(self.stop_sidecar)
        self._start_sidecar({_CREDENTIALS[api]: secret for api, secret in credentials.items()})
        self.until(self._is_up, _START_SECONDS, "'extauthz up' being ready")

    def _start_sidecar(self, credentials: Mapping[str, str]) -> None:
        probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        addresses = [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
        config = _config(self._limits, self.keys, self.sandbox.base_url, addresses)
        path = self._dir / "extauthz.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        self.egress, self.metrics, self.admin = (f"http://{address}" for address in addresses)
        for probe in probes:  # free until the last moment
            probe.close()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                [sys.executable, "-m", "extauthz", "up", "-c", str(path)],
                env={**os.environ, **credentials},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops `up`
            )

    def _is_up(self) -> bool:
        assert self._process is not None
        output = self.log.read_text(errors="replace")
        if (status := self._process.poll()) is not None:
            raise StageError(f"demo: 'extauthz up' ended with status {status}:\n{output[-2000:]}")
        return _READY in output


def _config(
    limits: Mapping[str, str], keys: Mapping[str, str], upstream: str, addresses: list[str]
) -> dict[str, Any]:
    """The config file of the demo's sidecar."""
    return {
        "data_dir": "./data",
        "listen": dict(zip(("egress", "metrics", "admin"), addresses, strict=True)),
        "providers": {
            api: {"api": api, "upstream": upstream, "credential": {"env": variable}}
            for api, variable in _CREDENTIALS.items()
        },
        "timeouts": {"drain": "3s"},
        # The runaway's calls take about a second, so their room may be held for longer than the
        # usual second: who meets it waits for its settlement, instead of being told to try again.
        "defaults": {
            "timezone": timezone_at_noon(datetime.now(UTC)),
            "hold_wait": "5s",
            "estimate": "strict",  # nobody's answer is shortened: the story is of refusals
        },
        "agents": {
            name: {
                "keys": [hash_key(keys[name])],
                "budgets": [{"limit": limit, "window": "day"}],
            }
            for name, limit in limits.items()
        },
    }


def timezone_at_noon(now: datetime) -> str:
    """Where it is about noon: a day that ends during the demo would begin a new budget."""
    hours = 12 - now.hour
    return f"Etc/GMT{-hours:+d}" if hours else "Etc/GMT"  # POSIX counts westwards


def forget_foreign_settings() -> None:
    """Take out of this process's environment what would lead the SDKs elsewhere.

    Proxies cannot reach this host's loopback, and the SDKs read keys, headers and URLs from
    variables of their own. No real credential is of any use here.
    """
    for name in list(os.environ):
        if name.upper().startswith(_FOREIGN) or name.lower().endswith("_proxy"):
            del os.environ[name]
