"""Starting the sandbox and talking to its `/_sandbox` routes, for tests and the demo."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

# Never through a proxy: the sandbox is on this host, and the environment may name one.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class SandboxError(RuntimeError):
    """The sandbox did not start, or did not accept what it was told."""


class SandboxClient:
    """The `/_sandbox` routes of a running sandbox."""

    def __init__(self, base_url: str, *, timeout: float = 30.0) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout = timeout

    @property
    def openai_url(self) -> str:
        """The `base_url` for OpenAI's SDK."""
        return f"{self.base_url}/v1"

    @property
    def anthropic_url(self) -> str:
        """The `base_url` for Anthropic's SDK."""
        return self.base_url

    def bill(self, *, after: int = 0) -> dict[str, Any]:
        """Totals, and the lines whose sequence is above `after`; amounts are strings."""
        return self._call("GET", f"/_sandbox/bill?after={after}")

    def total_nanousd(self, agent: str | None = None) -> int:
        """The sum of everything billed, or of what one agent is billed."""
        bill = self.bill(after=2**62)
        if agent is None:
            return int(bill["total_nanousd"])
        return int(bill["by_agent"].get(agent, {}).get("total_nanousd", 0))

    def requests(self) -> list[dict[str, Any]]:
        """Every request since the last reset, the rejected ones too."""
        return cast("list[dict[str, Any]]", self._call("GET", "/_sandbox/requests")["requests"])

    def reset(self) -> None:
        """Empty the bill and the requests, and set the script back; prices stay."""
        self._call("DELETE", "/_sandbox/bill")
        self._call("DELETE", "/_sandbox/script")

    def script(self, **settings: Any) -> None:
        """Change what happens to calls that say nothing themselves; see `Script` for the names."""
        self._call("POST", "/_sandbox/script", settings)

    def set_price(self, provider: str, model: str, **price: Any) -> None:
        """Offer a model from now on.

        Args:
            provider: `openai`, `anthropic`, `google`, `aws` or `cohere`.
            model: The name that clients ask for.
            price: `input`, `output` and, where they differ from input, `cached`,
                `cache_write_5m`, `cache_write_1h`: USD per million tokens, as strings. Also
                `snapshot`, `max_output_tokens`, `reasoning`.
        """
        self._call("POST", "/_sandbox/prices", {"provider": provider, "model": model, **price})

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base_url}{path}", data, method=method)  # noqa: S310
        try:
            with _opener.open(request, timeout=self._timeout) as response:
                return cast("dict[str, Any]", json.load(response))
        except urllib.error.HTTPError as error:
            with error:
                raise SandboxError(f"{method} {path}: {error.read().decode()}") from None


class Sandbox(SandboxClient):
    """A sandbox in a process of its own, which ends with the `with` block."""

    def __init__(self, base_url: str, process: subprocess.Popen[bytes]) -> None:
        super().__init__(base_url)
        self.process = process

    def stop(self) -> None:
        """End the process; its bill is gone."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start_sandbox(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    openai_key: str | None = None,
    anthropic_key: str | None = None,
    log_headers: Iterable[str] = (),
    timeout: float = 30.0,
) -> Sandbox:
    """Start a sandbox and wait until it serves requests.

    Raises:
        SandboxError: it ended, or was not ready in time.
    """
    environment = dict(os.environ)
    # In the environment, because everybody on this host can read a command line.
    if openai_key is not None:
        environment["SANDBOX_OPENAI_KEY"] = openai_key
    if anthropic_key is not None:
        environment["SANDBOX_ANTHROPIC_KEY"] = anthropic_key
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        ready_file = Path(folder, "ready")
        command = [sys.executable, "-m", "extauthz.sandbox", "--host", host, "--port", str(port)]
        command += ["--ready-file", str(ready_file)]
        for pattern in log_headers:
            command += ["--log-header", pattern]
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for whoever started it, and still asks for its bill
        )
        try:
            _wait_for(ready_file, process, timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return Sandbox(ready_file.read_text(), process)


def _wait_for(ready_file: Path, process: subprocess.Popen[bytes], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not ready_file.exists():
        if (code := process.poll()) is not None:
            raise SandboxError(f"the sandbox ended with {code} before it was ready")
        if time.monotonic() > deadline:
            raise SandboxError(f"the sandbox was not ready within {timeout} s")
        time.sleep(0.01)
