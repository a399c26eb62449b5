"""`extauthz demo` as somebody's first look: it adds up, and Ctrl-C leaves nothing behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from servers import until

SECONDS_MAX = 100  # a machine that runs the other tests at the same time is slow
ROW = re.compile(
    r"^(?P<agent>\(?\w[\w ]*\)?) +(?P<admitted>\d+)  (?P<denied>\S+(?: \w+)?) +"
    r"(?P<spent>\S+) +(?P<held>\S+) +(?P<limit>\S+) +(?P<bill>\S+) +(?P<difference>\S+)$",
    re.MULTILINE,
)


@pytest.fixture
def temp_dir() -> Iterator[Path]:
    """Every process of a demo names it, on its command line or in its environment."""
    # pytest's tmp_path is too long for a unix socket.
    path = Path(tempfile.mkdtemp(prefix="xa-", dir="/tmp"))
    yield path
    output_of(path).unlink(missing_ok=True)
    for pid in processes_of(path):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path, ignore_errors=True)


def output_of(temp_dir: Path) -> Path:
    """Beside the directory, which the demo must leave empty."""
    return temp_dir.with_suffix(".out")


def processes_of(temp_dir: Path) -> dict[int, str]:
    """Command lines, by process, of those that name the directory."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            state = (process / "stat").read_text().rpartition(") ")[2][0]
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if state != "Z" and str(temp_dir).encode() in command + environment:
            found[int(process.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def start_demo(temp_dir: Path) -> "subprocess.Popen[bytes]":
    with output_of(temp_dir).open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "extauthz", "demo"],
            env={
                **os.environ,
                "TMPDIR": str(temp_dir),
                # None of these may lead the demo astray.
                "HTTP_PROXY": "http://127.0.0.1:1",
                "OPENAI_API_KEY": "sk-real",
                "ANTHROPIC_AUTH_TOKEN": "real",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def test_the_demo_adds_up(temp_dir: Path) -> None:
    demo = start_demo(temp_dir)
    status = demo.wait(SECONDS_MAX)

    text = output_of(temp_dir).read_text()
    assert status == 0, text
    assert "\x1b" not in text
    assert "✗" not in text
    assert len(re.findall(r"^✓ ", text, re.MULTILINE)) == 8
    assert "extauthz init" in text
    rows = {row["agent"].strip(): row for row in ROW.finditer(text)}
    assert list(rows) == ["assistant", "runaway", "hangup", "explorer", "(no key)"], text
    runaway = rows["runaway"]
    assert runaway["denied"] == "8 budget_exhausted"
    assert Decimal(runaway["limit"]) - Decimal(runaway["spent"]) < Decimal("0.03")
    for name in ("assistant", "runaway", "explorer"):
        assert rows[name]["spent"] == rows[name]["bill"], text
    assert Decimal(rows["hangup"]["difference"]) > 0
    assert all(rows[name]["held"] == "0.00" for name in rows if name != "(no key)")
    assert processes_of(temp_dir) == {}
    assert list(temp_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("moment", "processes"),
    [
        pytest.param("extauthz:", 1, id="at once"),
        pytest.param("Starting", 2, id="while it starts"),
        pytest.param("Ready after", 6, id="when it has started"),
        pytest.param("runaway: ", 6, id="in the middle of the run"),
    ],
)
def test_ctrl_c_leaves_nothing_behind(temp_dir: Path, moment: str, processes: int) -> None:
    demo = start_demo(temp_dir)

    until(
        lambda: (
            moment in output_of(temp_dir).read_text() and len(processes_of(temp_dir)) >= processes
        ),
        SECONDS_MAX,
    )
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
    status = demo.wait(40)

    text = output_of(temp_dir).read_text()
    assert status == 130, text
    assert "Traceback" not in text
    assert processes_of(temp_dir) == {}
    assert list(temp_dir.iterdir()) == []


def test_a_missing_package_is_named_with_its_remedy() -> None:
    code = "import sys; sys.modules['openai'] = None; from extauthz.cli import main; main(['demo'])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr == "extauthz: the demo needs openai: pip install 'extauthz[demo]'\n"
