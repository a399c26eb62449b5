"""Brings rows from the store into the archive, and only then lets the store forget them.

One archiver works for an org at a time, whatever services share the store. The order is always:
append and fsync, then the archive's head, then one script that compares, keeps how far the rows are
sealed, and trims. A crash between any two of these is found by the next one who begins: what is
archived and still in the store is compared, never written again.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice

from extauthz.archive import Archive, ArchiveError, ArchiveWriter, BehindError
from extauthz.errors import OperatorError
from extauthz.ledger import ClockSkewError, Row, Seal, Sealed, Standing
from extauthz.metrics import Metrics
from extauthz.service.rules import Clock
from extauthz.store.base import BooksClosedError, LedgerStore, StoreError

ROWS_AT_ONCE = 200
"""So few that no Check waits for the milliseconds that their lines take."""

_CLAIM_MS = 15_000
"""How long the rows wait for an archiver that died; it is the same one again, or none."""

log = logging.getLogger(__name__)


class OrgArchiver:
    """Archives the rows of one org."""

    def __init__(
        self, org: str, store: LedgerStore, archive: Archive, clock: Clock, holder: str
    ) -> None:
        self._org, self._store, self._clock, self._holder = org, store, clock, holder
        self._archive = archive
        self._writer: ArchiveWriter | None = None
        self._sealed_seq = 0
        self.standing: Standing | None = None
        """as it was last seen"""

    async def has_rows(self) -> bool:
        """Whether anything was ever archived; True as well where that cannot be read."""
        try:
            return bool(await asyncio.to_thread(lambda: self._archive.last_seq))
        except ArchiveError:
            return True

    async def look(self) -> bool:
        """Archive what there is; False if another one archives this org, or it has no books yet.

        Raises:
            BehindError: the store has lost archived rows.
            ArchiveError: the archive is not what the store knows of it, or cannot be written.
            StoreError: the store is away.
        """
        try:
            return await self._look()
        except (ArchiveError, BehindError) as error:
            self._writer = None
            with suppress(StoreError, ClockSkewError):
                if isinstance(error, BehindError):
                    await self._tell_others(str(error))
            # Whoever has the right archive must not wait for one that has another.
            with suppress(StoreError, ClockSkewError):
                await self._claim(0)
            raise
        except BaseException:
            self._writer = None  # whatever it is in the middle of: begin from what is on disk
            raise

    async def give_up(self) -> None:
        """Let another one follow at once."""
        if self._writer is not None:
            self._writer = None
            await self._claim(0)

    async def _look(self) -> bool:
        try:
            standing = await self._claim(_CLAIM_MS)
        except BooksClosedError:
            await self._must_be_new()
            return False
        self.standing = standing
        is_holder = standing.holder == self._holder
        if standing.behind or not is_holder:
            self._writer = None  # what was said of the store is looked into from the beginning
            archived_seq = await asyncio.to_thread(lambda: self._archive.last_seq)
            self._must_not_be_behind(standing, archived_seq)
            if standing.behind and (not is_holder or archived_seq < standing.archived_seq):
                raise BehindError(standing.behind)
        if not is_holder:
            return False
        with self._archive.storage.lock() as is_ours:
            if not is_ours:  # they are rebuilt
                self._writer = None
                if standing.behind:
                    raise BehindError(standing.behind)
                return False
            if not await self._is_at_the_end(standing):
                self._writer = await self._open(standing)
            assert self._writer is not None
            self._must_not_be_behind(standing, self._writer.last_seq)
            if standing.behind:
                await self._store.note_behind(self._org, self._clock(), 0, None)
            await self._archive_all(self._writer)
        return True

    async def _is_at_the_end(self, standing: Standing) -> bool:
        """Whether the writer is where the store and the archive are by now."""
        writer = self._writer
        if writer is None or self._sealed_seq != standing.through_seq:
            return False
        return await asyncio.to_thread(lambda: writer.is_current)

    async def _archive_all(self, writer: ArchiveWriter) -> None:
        while True:
            rows = await self._store.rows(self._org, writer.last_seq, ROWS_AT_ONCE)
            if rows:
                await asyncio.to_thread(writer.append, rows)
            if writer.last_seq > self._sealed_seq:
                await self._seal(writer)
            if len(rows) < ROWS_AT_ONCE:
                return

    async def _seal(self, writer: ArchiveWriter) -> None:
        at_ms = self._clock()
        seal = Seal(
            self._org,
            at_ms,
            self._holder,
            at_ms + _CLAIM_MS,
            self._sealed_seq,
            writer.last_seq,
            writer.last_hash,
        )
        sealed = await self._store.seal(seal)
        if sealed is not Sealed.SEALED:
            raise ArchiveError(
                f"the rows of the org '{self._org}' cannot be sealed ({sealed.value}): another "
                "service archives them, or the store was set back; looking again"
            )
        self._sealed_seq = writer.last_seq
        if self.standing is not None:
            last_seq = max(self.standing.last_seq, writer.last_seq)
            self.standing = Standing(last_seq, writer.last_seq, writer.last_hash, self._holder)

    async def _claim(self, for_ms: int) -> Standing:
        at_ms = self._clock()
        return await self._store.claim_archive(self._org, self._holder, at_ms, at_ms + for_ms)

    async def _tell_others(self, why: str) -> None:
        """Who has no archive sees nothing of it, and would go on granting."""
        standing = await self._store.standing(self._org)
        if standing.behind == why:
            return
        last_seq = await asyncio.to_thread(lambda: self._archive.last_seq)
        through = standing.through_seq
        if through and await asyncio.to_thread(self._archive.hash_at, through) != standing.hash:
            return  # this is another archive than the one that the store's books are in
        await self._store.note_behind(self._org, self._clock(), last_seq, why)

    async def _must_be_new(self) -> None:
        last_seq = await asyncio.to_thread(lambda: self._archive.last_seq)
        if last_seq:
            raise BehindError(
                f"the store has no books of the org '{self._org}', and {last_seq} rows of them are "
                f"archived: {_REMEDY}"
            )

    def _must_not_be_behind(self, standing: Standing, archived_seq: int) -> None:
        if archived_seq > standing.last_seq:
            raise BehindError(
                f"the books of the org '{self._org}' end at row {standing.last_seq} in the store, "
                f"and at row {archived_seq} in the archive: the store has lost rows, and with them "
                f"what was spent: {_REMEDY}"
            )

    async def _open(self, standing: Standing) -> ArchiveWriter:
        """The archive's end, once it is known to be the one that the store's rows follow."""
        writer = await asyncio.to_thread(ArchiveWriter, self._archive)
        place, through = self._archive.storage.place, standing.through_seq
        if writer.last_seq < through:
            raise ArchiveError(
                f"{place}: ends at row {writer.last_seq}, and rows up to {through} were archived: "
                "the archive is in another data_dir, or the end of this one is missing"
            )
        if through and await asyncio.to_thread(self._archive.hash_at, through) != standing.hash:
            raise ArchiveError(
                f"{place}: row {through} is not the one that the store has seen archived: this is "
                "another archive, or it was changed"
            )
        self._must_not_be_behind(standing, writer.last_seq)
        await self._compare(through)
        self._sealed_seq = through
        return writer

    async def _compare(self, after_seq: int) -> None:
        """Rows that are archived and still in the store are the same in both."""
        archived = self._archive.rows(after_seq)
        while ours := await asyncio.to_thread(lambda: list(islice(archived, ROWS_AT_ONCE))):
            theirs = await self._store.rows(self._org, ours[0].seq - 1, len(ours))
            if theirs != ours:
                seq = _first_difference(ours, theirs)
                raise BehindError(
                    f"row {seq} of the org '{self._org}' is another one in the store than in the "
                    f"archive: the store was set back and has gone on from there: {_REMEDY}"
                )


class Archiver:
    """Archives the rows of all orgs, in the background; nothing waits for it."""

    def __init__(
        self,
        orgs: Callable[[], Iterable[str]],
        store: LedgerStore,
        archive_of: Callable[[str], Archive],
        clock: Clock,
        metrics: Metrics,
        *,
        holder: str,
        seen: Callable[[str], None] = lambda _org: None,
        every_seconds: float = 1.0,
    ) -> None:
        self._seen = seen
        self._orgs, self._store, self._archive_of = orgs, store, archive_of
        self._clock, self._metrics, self._holder = clock, metrics, holder
        self._every_seconds = every_seconds
        self._of: dict[str, OrgArchiver] = {}
        self._problems: dict[str, OperatorError | ClockSkewError] = {}
        self._round: asyncio.Task[None] | None = None
        self.is_archiving = False
        """whether it was the one that archives an org, when it looked last"""

    def behind(self, org: str) -> BehindError | None:
        """Why an org's counters must not be believed: the store has lost archived rows."""
        problem = self._problems.get(org)
        return problem if isinstance(problem, BehindError) else None

    async def begin(self) -> None:
        """Before the first call: books that are archived are known to be there, and compared."""
        for org in self._orgs():
            if await self._archiver(org).has_rows():
                self._store.expect_books(org)
        await self.look()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._every_seconds)

    async def finish(self) -> None:
        """Archive the last rows, and let another one follow."""
        await self.look()
        for archiver in self._of.values():
            with suppress(StoreError, ClockSkewError):
                await archiver.give_up()

    async def look(self) -> None:
        """One round over all orgs; whoever is cancelled meanwhile leaves it to end by itself.

        A thread that writes cannot be cancelled, and must not meet another one.
        """
        if self._round is not None and not self._round.done():
            await asyncio.wait({self._round})
        self._round = asyncio.create_task(self._look_at_all())
        await asyncio.shield(self._round)

    async def _look_at_all(self) -> None:
        archives_any = False
        for org in self._orgs():
            is_archiving, problem = False, None
            archiver = self._archiver(org)
            try:
                is_archiving = await archiver.look()
                if archiver.standing is not None and archiver.standing.last_seq:
                    self._seen(org)
            except (OperatorError, ClockSkewError) as error:
                problem = error
            self._tell(org, archiver.standing, problem, is_archiving=is_archiving)
            archives_any |= is_archiving
        self.is_archiving = archives_any

    def _tell(
        self,
        org: str,
        standing: Standing | None,
        problem: OperatorError | ClockSkewError | None,
        *,
        is_archiving: bool,
    ) -> None:
        before = self._problems.pop(org, None)
        if problem is not None:
            # A store that is away for a moment says nothing new about what it has lost.
            away = isinstance(problem, StoreError) and isinstance(before, BehindError)
            self._problems[org] = before if away and before else problem
            if str(problem) != str(before):
                log.error("rows are not archived: %s", problem)
        elif before is not None:
            log.info("rows of the org '%s' are archived again", org)
        behind = self.behind(org)
        self._store.distrust_books(org, str(behind) if behind else None)
        self._metrics.books_archiving.labels(org).set(is_archiving)
        if standing is not None:
            unsealed = standing.last_seq - standing.through_seq
            self._metrics.books_unsealed_rows.labels(org).set(unsealed)
            self._metrics.books_sealed_seq.labels(org).set(standing.through_seq)

    def _archiver(self, org: str) -> OrgArchiver:
        if org not in self._of:
            archive = self._archive_of(org)
            self._of[org] = OrgArchiver(org, self._store, archive, self._clock, self._holder)
        return self._of[org]


_REMEDY = "put its data back, or make it again with `extauthz ledger rebuild`"


def _first_difference(ours: list[Row], theirs: list[Row]) -> int:
    pairs = zip(ours, theirs, strict=False)
    return next((one.seq for one, other in pairs if one != other), ours[0].seq + len(theirs))
