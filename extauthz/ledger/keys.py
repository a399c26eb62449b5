"""Virtual keys as operators give them out while calls go on: kept beside limits and pauses.

Whose a key is stands in the ledger under its SHA-256, so that it holds for every process on the
store, and a reserve checks it in the step in which it decides: a key that was revoked a moment ago
is refused by the next one, whatever a process remembers of it.
"""

import re
from dataclasses import dataclass

KEYS_MAX = 10_000
"""So many keys an org may have: all are read whenever its overrides are."""

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_WHOSE = re.compile(r"agent:[A-Za-z0-9][A-Za-z0-9._@-]*")


def check_key_change(key_hash: str, target: str) -> None:
    """What a change of a key must name.

    Raises:
        ValueError: it is no hash of a key, or no agent.
    """
    if not _HASH.fullmatch(key_hash):
        raise ValueError("a key is named by 'sha256:' and the 64 hex digits of its hash")
    if not _WHOSE.fullmatch(target):
        raise ValueError(f"{target!r} is not 'agent:NAME'")


@dataclass(frozen=True, slots=True)
class Key:
    """Whose a virtual key is, and for how long.

    Attributes:
        whose: `agent:NAME`.
        made_at_ms: when it was given out.
        until_ms: when it ends by itself; None: not before it is revoked.
    """

    whose: str
    made_at_ms: int
    until_ms: int | None = None

    @property
    def agent(self) -> str:
        """The agent's name."""
        return self.whose.removeprefix("agent:")

    def holds(self, at_ms: int) -> bool:
        """Whether it admits anybody."""
        return self.until_ms is None or at_ms < self.until_ms


@dataclass(frozen=True, slots=True)
class KeyGone:
    """Not granted: the key by which the call came in holds no longer, or is another agent's."""

    id: str
