"""Rows that are archived leave the ledger: who may take them, and how far they have been taken."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Standing:
    """How the rows of an org stand between ledger and archive.

    Attributes:
        last_seq: the last row of all; 0 where no books were opened.
        through_seq: the last one that is sealed: archived, and trimmed here.
        hash: what the archive's line of that one carries; an archive without it is another one.
        holder: who archives them; nobody else may until `until_ms`.
        until_ms: when anybody may.
        behind: why these books must not be believed: rows that are archived are missing in them, as
            a service that has the archive has said; nothing while nobody has.
        archived_seq: the last row that it has; who has fewer cannot say otherwise.
    """

    last_seq: int = 0
    through_seq: int = 0
    hash: str = ""
    holder: str = ""
    until_ms: int = 0
    behind: str = ""
    archived_seq: int = 0


@dataclass(frozen=True, slots=True)
class Seal:
    """The rows of `org` up to `through_seq` are on disk, and `hash` proves them."""

    org: str
    at_ms: int
    holder: str
    until_ms: int
    before_seq: int
    """the last row that was sealed before"""
    through_seq: int
    hash: str


class Sealed(StrEnum):
    """What became of a `Seal`; but for the first, nothing was changed."""

    SEALED = "sealed"
    NOT_HOLDER = "not_holder"
    """another one has become the holder"""
    MOVED = "moved"
    """the rows are sealed up to another one than `before_seq`"""
    BEHIND = "behind"
    """the ledger does not have rows up to `through_seq`: it has lost some"""
