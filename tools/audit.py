"""The audit: does the lock hold a version for which a weakness is known?

    python tools/audit.py read FOLDER  # take from a checkout of github.com/pypa/advisory-database
    python tools/audit.py check        # offline: the lock against what was taken

What was taken stands in `advisories.json`: those of the lock's packages only, with the date of the
newest advisory in that checkout: an audit knows nothing of what was found later.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lock import LOCK, canonical
from packaging.version import Version

ADVISORIES = Path(__file__).with_name("advisories.json")


def locked() -> dict[str, str]:
    lines = (line for line in LOCK.read_text().splitlines() if not line.startswith("#"))
    return dict(line.split()[0].split("==") for line in lines)


def read(checkout: Path) -> dict[str, Any]:
    """The advisories about the lock's packages."""
    packages, newest, found = locked(), "", []
    for file in sorted(checkout.glob("vulns/*/*.yaml")):
        advisory = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
        newest = max(newest, str(advisory["modified"])[:10])
        for affected in advisory.get("affected", ()):
            name = canonical(affected["package"]["name"])
            if name in packages and not advisory.get("withdrawn"):
                found.append(
                    {"id": advisory["id"], "package": name, "ranges": list(_ranges(affected))}
                )
    return {"newest": newest, "advisories": found}


def _ranges(affected: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """From which version on, and up to which, or before which, as OSV says it."""
    spans = [span for span in affected.get("ranges", ()) if span["type"] == "ECOSYSTEM"]
    for span in spans:
        found: dict[str, Any] = {}
        for event in span["events"]:
            if "introduced" in event and found:
                yield found
                found = {}
            found |= {name: str(version) for name, version in event.items()}
        yield found
    if not spans:
        yield {"versions": [str(version) for version in affected.get("versions", ())]}


def _is_in(version: Version, span: dict[str, Any]) -> bool:
    if "versions" in span:
        return version in {Version(one) for one in span["versions"]}
    return (
        Version(span["introduced"]) <= version
        and ("fixed" not in span or version < Version(span["fixed"]))
        and ("last_affected" not in span or version <= Version(span["last_affected"]))
    )


def affected(versions: dict[str, str], advisories: list[dict[str, Any]]) -> Iterator[str]:
    """What stands in the lock and should not."""
    for one in advisories:
        name = one["package"]
        for span in one["ranges"]:
            if name in versions and _is_in(Version(versions[name]), span):
                mended = span.get("fixed", "no version that is known")
                yield f"{name}=={versions[name]}: {one['id']}, mended in {mended}"


def main() -> None:
    match sys.argv[1:]:
        case ["read", folder]:
            ADVISORIES.write_text(json.dumps(read(Path(folder)), indent=1) + "\n")
        case ["check"]:
            known = json.loads(ADVISORIES.read_text())
            found = list(affected(locked(), known["advisories"]))
            print(
                f"{len(locked())} locked packages, {len(known['advisories'])} advisories about "
                f"them up to {known['newest']}, {len(found)} affected"
            )
            sys.exit("\n".join(found) or 0)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
