"""The whole product as its users run it: `extauthz up`, with the service's metrics and logs on."""

import os
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.processes import child_named, free_port, listens, listens_on, running, until
from extauthz.identity import hash_key

KEY = "xa_bench_key"
AGENT = "bench"
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Product:
    """A running sidecar."""

    dir: Path
    config: Mapping[str, Any]
    pid: int
    ready_seconds: float

    @property
    def data_dir(self) -> Path:
        """Where its files and sockets are."""
        return self.dir / "data"

    @property
    def check_socket(self) -> Path:
        """Where the service listens for Checks."""
        return self.data_dir / "run" / "check.sock"

    @property
    def egress(self) -> str:
        """Where agents call."""
        return f"http://{self.config['listen']['egress']}"

    @property
    def service(self) -> int:
        """The service's process."""
        return child_named(self.pid, "serve")

    @property
    def store(self) -> int:
        """The embedded store's process."""
        return child_named(self.pid, "valkey-server")

    @property
    def envoy(self) -> int:
        """Envoy's process."""
        return child_named(self.pid, "envoy.yaml")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        text = self._scrape()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(value)
            for sample, given, value in _SAMPLE.findall(text)
            if sample == name and all(one in given for one in wanted)
        )

    def answers(self) -> list[str]:
        """The metrics of what has been answered."""
        text = self._scrape()
        return [line for line in text.splitlines() if line.startswith("extauthz_checks_total")]

    def _scrape(self) -> str:
        url = f"http://{self.config['listen']['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    @property
    def allowed(self) -> int:
        """How many Checks have been answered with yes."""
        return int(self.metric("extauthz_checks_total", decision="allow"))


def three_budgets() -> dict[str, Any]:
    """An agent's day, its team's day and its org's month, none of which is ever reached."""
    return {
        "agents": {
            AGENT: {
                "keys": [hash_key(KEY)],
                "team": "support",
                "budgets": [{"limit": 1_000_000, "window": "day"}],
            }
        },
        "teams": {"support": {"budgets": [{"limit": 2_000_000, "window": "day"}]}},
        "orgs": {"default": {"budgets": [{"limit": 4_000_000, "window": "month"}]}},
    }


@contextmanager
def running_product(upstream_port: int, **changes: Any) -> Iterator[Product]:
    """`extauthz up` in a directory of its own, in front of an upstream on this host."""
    directory = Path(tempfile.mkdtemp(prefix="xa-bench-"))
    config = {
        "data_dir": "./data",
        "listen": {name: f"127.0.0.1:{free_port()}" for name in ("egress", "metrics", "admin")},
        "providers": {
            "openai": {
                "api": "openai",
                "upstream": f"http://127.0.0.1:{upstream_port}",
                "credential": {"env": "BENCH_CREDENTIAL"},
            }
        },
        **three_budgets(),
        **changes,
    }
    path = directory / "extauthz.yaml"
    path.write_text(yaml.safe_dump(config))
    env = {**os.environ, "BENCH_CREDENTIAL": "sk-bench"}
    command = [sys.executable, "-m", "extauthz", "up", "-c", str(path)]
    try:
        started = time.perf_counter()
        with running(command, directory / "log", env) as process:
            egress = int(str(config["listen"]["egress"]).rpartition(":")[2])
            check = directory / "data" / "run" / "check.sock"
            until(lambda: listens_on(egress) and listens(check), "the product does not start")
            yield Product(directory, config, process.pid, time.perf_counter() - started)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
