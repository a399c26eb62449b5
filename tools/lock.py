"""The lock file: every package that an installation runs, with the hash of what was reviewed.

    python tools/lock.py write    # resolve anew, with what pip finds; needs a network
    python tools/lock.py check    # offline: does the lock have what pyproject.toml asks for?
    python tools/lock.py fits     # exit 0 where this Python and platform are those of the lock

No index is named in it: pip takes the files from wherever it is configured to, and refuses all that
have another hash.
"""

import json
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

with suppress(ImportError):  # before anything is installed; `fits` needs none
    from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK, PROJECT = ROOT / "requirements.lock", ROOT / "pyproject.toml"
BUILD = ("hatchling>=1.27", "editables")
"""What builds the project itself: in the lock too, so that nothing is fetched beside it."""

_LINE = re.compile(r"([a-z0-9-]+)==([^ ]+) (?:--hash=sha256:[0-9a-f]{64}\s*)+")


def environment() -> str:
    """The files of another Python or platform have other hashes."""
    python = f"CPython {sys.version_info.major}.{sys.version_info.minor}"
    return f"# for {python} on {platform.system()} {platform.machine()}"


def write() -> None:
    report = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
         "--report", "-", "-e", f"{ROOT}[demo]", "--group", f"{PROJECT}:dev",
         "--group", f"{PROJECT}:fuzz", *BUILD],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    LOCK.write_text(text_of(json.loads(report)))


def text_of(report: dict[str, Any]) -> str:
    """Pip's report as lines of the lock, by name; the project itself is not in it."""
    lines = []
    for item in report["install"]:
        info = item["download_info"]
        if "archive_info" not in info:
            continue
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        digest = info["archive_info"]["hashes"]["sha256"]
        lines.append(f"{canonical(name)}=={version} --hash=sha256:{digest}")
    head = [environment(), "# made by make lock; make install takes nothing else where it fits"]
    return "\n".join([*head, *sorted(lines), ""])


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def problems() -> Iterator[str]:
    """Where the lock and pyproject.toml differ."""
    locked: dict[str, str] = {}
    for line in LOCK.read_text().splitlines():
        if line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            yield f"not a package with its hash: {line[:80]}"
        else:
            locked[found[1]] = found[2]
    project = tomllib.loads(PROJECT.read_text())
    extras = project["project"]["optional-dependencies"]
    direct = [Requirement(line) for line in (
        *project["project"]["dependencies"],
        *(line for lines in extras.values() for line in lines if not line.startswith("extauthz[")),
        *project["dependency-groups"]["dev"], *project["dependency-groups"]["fuzz"],
        *project["build-system"]["requires"], *BUILD,
    )]  # fmt: skip
    todo = [one for one in direct if _counts(one, "")]
    seen: set[tuple[str, str]] = set()
    while todo:
        wanted = todo.pop()
        name = canonical(wanted.name)
        if name not in locked:
            yield f"{wanted}: is not in the lock"
        elif not wanted.specifier.contains(locked[name], prereleases=True):
            yield f"{wanted}: the lock has {locked[name]}"
        for extra in ("", *wanted.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            todo += [one for one in needed_by(name, locked.get(name)) if _counts(one, extra)]
    unneeded = sorted(set(locked) - {name for name, _ in seen})
    if unneeded and is_installed("hatchling"):  # what it needs is known only then
        yield f"nothing needs these of the lock: {', '.join(unneeded)}"


def is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def needed_by(name: str, version: str | None) -> "Iterator[Requirement]":
    """What a package asks for, as far as that version of it is installed here."""
    try:
        installed = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    if installed.version == version:
        yield from map(Requirement, installed.requires or ())


def _counts(wanted: "Requirement", extra: str) -> bool:
    return wanted.marker is None or bool(wanted.marker.evaluate({"extra": extra}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write"]:
            write()
        case ["fits"]:
            sys.exit(not LOCK.exists() or LOCK.read_text().splitlines()[0] != environment())
        case ["check"]:
            found = list(problems())
            sys.exit("\n".join(found) or 0)
        case _:
            sys.exit(__doc__)
