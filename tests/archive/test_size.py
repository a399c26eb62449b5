"""A million rows: archived, proven and added up in bounded memory."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from extauthz.archive import ArchiveWriter, verify
from extauthz.ledger import Tally

PROCESS = "import sys; from test_size import work; work(*sys.argv[1:])"
ROWS = 1_000_000


def work(directory: str, step: str, rows: str) -> None:
    """One step in a process of its own, so that the peak of its memory is its own."""
    from archived import KEY, a_row, archive_in  # noqa: PLC0415 the test's process needs no path

    archive, count, began = archive_in(Path(directory), KEY), int(rows), time.perf_counter()
    if step == "archive":
        writer = ArchiveWriter(archive)
        for first in range(1, count + 1, 200):
            writer.append([a_row(seq) for seq in range(first, min(first + 200, count + 1))])
    elif step == "verify":
        assert verify(archive).findings == []
    else:
        tally = Tally()
        for row in archive.rows():
            tally.add(row)
            if row.seq % 10_000 == 0:
                tally.forget(row.at_ms)
        assert tally.last_seq == count
    seconds = time.perf_counter() - began
    # (getrusage tells the peak of the process that started this one, if that was higher)
    status = Path("/proc/self/status").read_text()
    peak_mib = int(status.partition("VmHWM:")[2].split()[0]) // 1024
    print(f"{step}: {count / seconds:.0f} rows/s, peak {peak_mib} MiB", flush=True)
    print(peak_mib)


def peak_mib(directory: Path, step: str, rows: int) -> int:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(directory), step, str(rows)],
        env={"PYTHONPATH": f"{here}:{here.parent}"},
        check=True,
        capture_output=True,
        text=True,
    )
    said, peak = done.stdout.splitlines()
    print(said)
    return int(peak)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(30_000, id="30,000 rows"),
        pytest.param(
            ROWS, marks=[pytest.mark.full, pytest.mark.timeout(3600)], id="1,000,000 rows"
        ),
    ],
)
def test_memory_does_not_grow_with_the_books(tmp_path: Path, rows: int) -> None:
    """An interpreter with what it imports takes about 60 MiB; the rows are ten to 700 MB."""
    for step in ("archive", "verify", "sum"):
        assert peak_mib(tmp_path, step, rows) < 150
