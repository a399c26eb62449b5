"""What processes there are, by /proc: a sidecar must leave none behind."""

import time
from pathlib import Path


def family(pid: int) -> set[int]:
    """A process and all its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))):
            parents[int(entry.name)] = int(stat[1])
    members = {pid}
    while new := {child for child, parent in parents.items() if parent in members} - members:
        members |= new
    return members


def alive(pids: set[int]) -> set[int]:
    """Those that still run."""
    return {pid for pid in pids if (stat := _stat(pid)) and stat[0] != "Z"}


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def wait_until_gone(pids: set[int], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while left := alive(pids):
        assert time.monotonic() < deadline, [
            Path(f"/proc/{pid}/cmdline").read_text() for pid in left
        ]
        time.sleep(0.02)


def _stat(pid: int) -> list[str]:
    """State, parent and so on; empty if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
