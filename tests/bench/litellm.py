"""LiteLLM's proxy, for comparison: from PyPI, in an environment of its own.

    python3 -m venv .venv-litellm && .venv-litellm/bin/pip install 'litellm[proxy]'

Its fastest setting that enforces a budget and needs no database: one budget for the provider, kept
in memory and checked when the router picks a deployment. Its budgets for keys, teams and users need
PostgreSQL. (docs.litellm.ai, "Budget Routing")
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.check_request import CONTENT_TYPE, MODEL, PATH
from bench.processes import free_port, listens_on, running, until

BINARY = Path(os.environ.get("LITELLM", ".venv-litellm/bin/litellm"))
_KEY = "sk-bench"
HEADERS = {"content-type": CONTENT_TYPE, "authorization": f"Bearer {_KEY}"}


def is_there() -> bool:
    """Whether it is installed."""
    return BINARY.exists()


@contextmanager
def running_litellm(upstream_port: int) -> Iterator[str]:
    """Its address for a chat completion."""
    params = {
        "model": f"openai/{MODEL}",
        "api_base": f"http://127.0.0.1:{upstream_port}/v1",
        "api_key": "sk-bench",
    }
    budget = {"openai": {"budget_limit": 1_000_000, "time_period": "1d"}}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": params}],
        "router_settings": {"provider_budget_config": budget},
        "general_settings": {"master_key": _KEY},
        "litellm_settings": {"telemetry": False},
    }
    with tempfile.TemporaryDirectory(prefix="xa-bench-") as directory:
        path, port = Path(directory) / "config.yaml", free_port()
        path.write_text(json.dumps(config))
        command = [str(BINARY), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
        env = {**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        with running(command, Path(directory) / "log", env):
            until(lambda: listens_on(port), "LiteLLM does not start", 180)
            yield f"http://127.0.0.1:{port}{PATH}"
