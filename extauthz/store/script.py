"""The Lua scripts as the store calls them: by the hash of their text."""

import hashlib
from dataclasses import dataclass, field
from importlib import resources

Command = tuple[str, ...]

_SCRIPTS = resources.files("extauthz.store") / "scripts"


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its text, and the hash that EVALSHA knows it by."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


def _load(name: str) -> Script:
    """A script's first line (its flags must stand first), the shared prelude, then its rest."""
    flags, _, body = (_SCRIPTS / name).read_text(encoding="utf-8").partition("\n")
    prelude = (_SCRIPTS / "prelude.lua").read_text(encoding="utf-8")
    return Script(f"{flags}\n{prelude}\n{body}")


RESERVE = _load("reserve.lua")
SETTLE = _load("settle.lua")
RELEASE = _load("release.lua")
RENEW = _load("renew.lua")
EXPIRE = _load("expire.lua")
OVERRIDE = _load("override.lua")
OPEN = _load("open.lua")
CLOSE = _load("close.lua")
CUT = _load("cut.lua")
REPAIR = _load("repair.lua")
RESTORE = _load("restore.lua")
CLAIM = _load("claim.lua")
SEAL = _load("seal.lua")
BEHIND = _load("behind.lua")


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait in the same round trip until so many replicas have what the script wrote."""

    replicas: int
    timeout_ms: int

    def command(self) -> Command:
        """As it stands right behind the script, on the same connection."""
        return ("WAIT", str(self.replicas), str(self.timeout_ms))


@dataclass(frozen=True, slots=True)
class Call:
    """One script to run; `keys` are all that it touches, `args` begin with the reservation id."""

    script: Script
    org: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    wait: Wait | None = None

    @property
    def id(self) -> str:
        """What the reply must begin with."""
        return self.args[0]

    def by_hash(self) -> Command:
        """The command for a server that has run this script before."""
        return ("EVALSHA", self.script.sha, str(len(self.keys)), *self.keys, *self.args)

    def by_text(self) -> Command:
        """The command for any server."""
        return ("EVAL", self.script.text, str(len(self.keys)), *self.keys, *self.args)
