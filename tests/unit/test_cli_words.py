"""What is no text is refused before anything is done: it would stand in the books for good."""

import subprocess
import sys
from pathlib import Path


def test_an_argument_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    words = [
        "ledger",
        "adjust",
        "an-id",
        "--cost",
        "1",
        "--reason",
        b"caf\xe9",
        "-c",
        tmp_path / "x",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "extauthz", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "write it in UTF-8" in done.stderr
    assert "Traceback" not in done.stderr
