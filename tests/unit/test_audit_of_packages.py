"""The audit of locked packages: what is known to be weak is named, with what mends it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

TOOLS = Path(__file__).parents[2] / "tools"

TWICE = [{"introduced": "1"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "3.2"}]


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    import audit  # noqa: PLC0415

    yield audit
    for name in ("audit", "lock"):
        sys.modules.pop(name)


def advisory(*events: dict[str, str], **more: Any) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}, {"type": "GIT", "events": []}]
    about = {"package": {"ecosystem": "PyPI", "name": "Some_Package"}, "ranges": ranges}
    return {"id": "PYSEC-1", "modified": "2026-01-02T03:04:05Z", "affected": [about], **more}


@pytest.mark.parametrize(
    ("version", "events", "is_affected"),
    [
        ("1.9", [{"introduced": "0"}, {"fixed": "2.0"}], True),
        ("2.0", [{"introduced": "0"}, {"fixed": "2.0"}], False),
        ("1.10", [{"introduced": "1.9"}, {"fixed": "1.11"}], True),
        ("1.8", [{"introduced": "1.9"}], False),
        ("9", [{"introduced": "1.9"}], True),
        ("2.0", [{"introduced": "0"}, {"last_affected": "2.0"}], True),
        ("2.0.1", [{"introduced": "0"}, {"last_affected": "2.0"}], False),
        ("3.1", [{"introduced": "1"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "3.2"}], True),
        (
            "2.5",
            [{"introduced": "1"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "3.2"}],
            False,
        ),
    ],
)
def test_a_locked_version_that_is_known_to_be_weak_is_named(
    audit: Any, tmp_path: Path, monkeypatch: Any, version: str, events: Any, is_affected: bool
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"# for CPython\nsome-package=={version} --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(audit, "LOCK", lock)
    folder = tmp_path / "vulns" / "some-package"
    folder.mkdir(parents=True)
    (folder / "PYSEC-1.yaml").write_text(yaml.safe_dump(advisory(*events)))
    gone = advisory({"introduced": "0"}, withdrawn="2026-01-03T00:00:00Z", id="PYSEC-2")
    (folder / "PYSEC-2.yaml").write_text(yaml.safe_dump(gone))

    known = json.loads(json.dumps(audit.read(tmp_path)))
    found = list(audit.affected(audit.locked(), known["advisories"]))

    assert known["newest"] == "2026-01-02"
    assert bool(found) is is_affected
    assert all(line.startswith(f"some-package=={version}: PYSEC-1, mended in") for line in found)


def test_what_is_shipped_is_about_the_lock_and_finds_nothing(audit: Any) -> None:
    known = json.loads((TOOLS / "advisories.json").read_text())

    assert {one["package"] for one in known["advisories"]} & audit.locked().keys()
    assert len(known["advisories"]) > 30
    assert list(audit.affected(audit.locked(), known["advisories"])) == []
