"""Proves the archives of a config's orgs, and compares them with the store if it answers."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from extauthz.archive import Archive, ArchiveError, Finding, Verification, verify
from extauthz.config import Config, policies_of
from extauthz.ledger import Standing
from extauthz.server.archives import archives_of
from extauthz.server.data_dir import DataDir
from extauthz.server.in_force import as_recorded
from extauthz.server.store_url import store_url
from extauthz.store.base import LedgerStore, StoreError
from extauthz.store.redis import RedisStore

_ROWS_AT_ONCE = 500
_COMMAND_TIMEOUT_S = 5.0
_HEAD_FOLLOWS_SECONDS = 2.0


@dataclass(slots=True)
class OrgVerified:
    """What was found of one org.

    Attributes:
        org: whose books these are.
        place: where its archive is.
        is_keyed: whether its lines are chained with a key.
        verification: what its files say.
        findings: those of the files, then those of the comparison with the store.
        store_says: why the store was not looked at; None if it was.
    """

    org: str
    place: str
    is_keyed: bool
    verification: Verification
    findings: list[Finding] = field(default_factory=list)
    store_says: str | None = None


async def verify_books(config: Config, org: str | None) -> list[OrgVerified]:
    """Prove the archive of one org, or of all that have one or are configured.

    Raises:
        ArchiveError: the key cannot be read, or nobody knows of this org.
        InForceError: what orgs there were cannot be read.
        StoreError: `store.url` is none.
    """
    archive_of = archives_of(config)
    store = RedisStore.from_url(store_url(config), command_timeout_s=_COMMAND_TIMEOUT_S)
    try:
        known = _orgs(config)
        if org and org not in known:
            raise ArchiveError(
                f"--org {org}: no books of it are known here; those that are: {', '.join(known)}"
            )
        orgs = [org] if org else known
        return [await _verify_org(one, archive_of, store) for one in orgs]
    finally:
        await store.close()


def _orgs(config: Config) -> list[str]:
    data_dir = DataDir(config.data_dir)
    policies = as_recorded(data_dir.in_force, policies_of(config))
    directory = data_dir.books
    archived = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted({*policies.all_orgs, *archived})


async def _verify_org(
    org: str, archive_of: Callable[[str], Archive], store: LedgerStore
) -> OrgVerified:
    archive, standing, silence = archive_of(org), None, None
    try:
        # Before the files are read: a service that archives meanwhile only adds to them.
        standing = await store.standing(org)
    except StoreError as error:
        silence = str(error)
    known = (standing.through_seq,) if standing else ()
    found = await asyncio.to_thread(verify, archive, known_seqs=known)
    told = OrgVerified(
        org, archive.storage.place, archive.chain.key is not None, found, [*found.findings], silence
    )
    if standing is not None:
        told.findings += _differences(archive, found, standing)
    if told.findings:
        return told
    told.findings += await _unconfirmed(archive, found)
    if standing is not None:
        try:
            told.findings += await _compared(archive, store, org)
        except StoreError as error:
            told.store_says = str(error)
        except ArchiveError as error:
            told.findings.append(Finding(archive.storage.place, str(error)))
    return told


async def _unconfirmed(archive: Archive, found: Verification) -> list[Finding]:
    """Rows after the head, unless a service has written them just now: it moves the head on."""
    deadline = time.monotonic() + _HEAD_FOLLOWS_SECONDS
    while (head := archive.last_seq) < found.last_seq:
        if time.monotonic() > deadline:
            what = (
                f"{found.last_seq - head} rows stand after the head: a crash has left them, which "
                "the service mends when it starts, or somebody has added them"
            )
            return [Finding(archive.storage.place, what, seq=head + 1)]
        await asyncio.sleep(0.1)
    return []


def _differences(archive: Archive, found: Verification, standing: Standing) -> list[Finding]:
    """What the store knows of the archive."""
    place, through = archive.storage.place, standing.through_seq
    last = found.head.seq if found.head else 0
    if last < through:
        what = (
            f"ends at row {last}, and the store has seen rows up to {through} archived: its end is "
            "missing, or it is another archive"
        )
        return [Finding(place, what, seq=last)]
    if through and found.hash_of.get(through) not in (None, standing.hash):
        what = (
            "has another hash than the store has seen: all lines from a changed one on were made "
            "anew, or it is another archive"
        )
        return [Finding(place, what, seq=through)]
    if last > standing.last_seq:
        what = (
            f"ends at row {last}, and the store's books at row {standing.last_seq}: the store has "
            "lost rows"
        )
        return [Finding(place, what, seq=last)]
    return []


async def _compared(archive: Archive, store: LedgerStore, org: str) -> list[Finding]:
    """Rows that stand in both are the same, and the store's go on where the archive ends."""
    place, after_seq = archive.storage.place, (await store.standing(org)).through_seq
    archived = archive.rows(after_seq)
    while ours := await asyncio.to_thread(lambda: list(islice(archived, _ROWS_AT_ONCE))):
        theirs = {row.seq: row for row in await store.rows(org, ours[0].seq - 1, len(ours))}
        for row in ours:
            # One that is gone was sealed in the meantime.
            if theirs.get(row.seq, row) != row:
                return [Finding(place, "is another row in the store", seq=row.seq)]
    last = archive.last_seq
    rest = await store.rows(org, last, 1)
    if rest and rest[0].seq != last + 1 and archive.last_seq == last:
        what = f"ends here, and the store goes on with row {rest[0].seq}"
        return [Finding(place, what, seq=last)]
    return []
