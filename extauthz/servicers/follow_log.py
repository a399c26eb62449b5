"""Follows Envoy's file access log, some seconds behind the gRPC log, and settles what that lost."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from extauthz.service.reconcile import Reconciled, Reconciler
from extauthz.servicers.file_log import Read, read_lines, reservation_of
from extauthz.servicers.log_files import LogFiles, Place
from extauthz.store.base import StoreError

_SAVED_EVERY = 64
"""chunks of a long catch-up: what was read since is only read again"""

_AWAY_TURNS = 3
"""A turn goes as far as the one before it looked; more than that and some work is being away."""

log = logging.getLogger(__name__)


class FollowObserver(Protocol):
    """Told of what was found, for metrics."""

    def reconciled(self, result: Reconciled, unreadable: int) -> None:
        """Some lines were gone through."""


@dataclass(slots=True)
class LogFollower:
    """Goes through the log once, then follows it.

    A line is taken when it has been there for one to two turns: by then the gRPC path has settled
    its call, unless it lost it. When the store's primary has changed, it begins anew: what the old
    one had acknowledged and not replicated, the new one does not know.
    """

    files: LogFiles
    bookmark: Path
    reconciler: Reconciler
    observer: FollowObserver
    primary_changes: Callable[[], int] = lambda: 0
    """how often another server was found to be the store's primary"""
    every_seconds: float = 5.0
    _is_behind: bool = True
    _changes_seen: int = 0
    _caught_up_at: float = field(default_factory=time.monotonic)
    _covered_at: float = field(default_factory=time.monotonic)
    """all that had been written then has been gone through"""
    _place: Place | None = None

    @property
    def backlog(self) -> int:
        """1 as long as calls may have ended that only the file tells of; else 0.

        So it is too when this process was not given any time for a while (it was frozen, or its
        machine slept): what was written meanwhile has not been looked at yet.
        """
        was_away = time.monotonic() - self._covered_at > _AWAY_TURNS * self.every_seconds
        return int(self._is_behind or was_away or self.primary_changes() != self._changes_seen)

    @property
    def lag_seconds(self) -> float:
        """How long ago everything that was then old enough had been gone through."""
        return time.monotonic() - self._caught_up_at

    async def run(self) -> None:
        """Follow for ever; what cannot be settled now is tried again."""
        self._place = await asyncio.to_thread(Place.load, self.bookmark)
        sizes = None  # at first all there is: this process has settled none of it
        looked_at = time.monotonic()
        while True:
            next_looked_at = time.monotonic()
            next_sizes = await asyncio.to_thread(self.files.sizes)
            try:
                await self.rewind_if_the_primary_changed()
                await self.follow(sizes)
            except StoreError as error:
                self._is_behind = True
                log.warning("the access log cannot be reconciled now: %s", error)
            except OSError:
                # Waiting for it could keep leases from running out for ever.
                self._is_behind, self._covered_at = False, time.monotonic()
                log.exception("the access log cannot be read")
            else:
                self._is_behind, self._covered_at = False, looked_at
                self._caught_up_at = time.monotonic()
                sizes, looked_at = next_sizes, next_looked_at
            await asyncio.sleep(self.every_seconds)

    async def rewind_if_the_primary_changed(self) -> None:
        """Take the log from its beginning: what is settled costs one read, and changes nothing.

        Raises:
            OSError: the bookmark cannot be deleted, so a restart would go on from there.
        """
        if (changes := self.primary_changes()) == self._changes_seen:
            return
        log.warning("the store's primary has changed: going through the whole access log again")
        self._changes_seen, self._place, self._is_behind = changes, None, True
        await asyncio.to_thread(self.bookmark.unlink, missing_ok=True)

    async def follow(self, sizes: dict[int, int] | None = None) -> None:
        """Go on from the bookmark, in each file up to a size.

        Raises:
            StoreError: the store has not taken it all.
            OSError: a file cannot be read.
        """
        saved = self._place
        try:
            for turn in range(1, 1 << 62):
                found = await asyncio.to_thread(self.files.read, self._place, sizes)
                if found is None:
                    return
                lines, place = found
                read = await asyncio.to_thread(read_lines, await self._open(lines))
                self.observer.reconciled(*await self._reconcile(read))
                self._place = place
                if turn % _SAVED_EVERY == 0:
                    await asyncio.to_thread(place.save, self.bookmark)
                    saved = place
        finally:
            if self._place is not None and self._place != saved:
                await asyncio.to_thread(self._place.save, self.bookmark)

    async def _reconcile(self, read: Read) -> tuple[Reconciled, int]:
        """What became of the lines, and how many of them are of no use."""
        try:
            return await self.reconciler.reconcile(read.calls, read.unanswered), read.unreadable
        except StoreError:
            raise
        except Exception:
            log.exception("some lines cannot be reconciled together: now each for itself")
        result, useless = Reconciled(), read.unreadable
        for call in read.calls:
            try:
                result.add(await self.reconciler.reconcile([call]))
            except StoreError:
                raise
            except Exception:
                useless += 1
                log.exception("%s cannot be reconciled", call.record.reservation_id)
        result.add(await self.reconciler.reconcile([], read.unanswered))
        return result, useless

    async def _open(self, lines: list[bytes]) -> list[bytes]:
        """The lines whose calls are not settled, as far as that can be told at a glance."""
        of_line = {line: found for line in lines if (found := reservation_of(line))}
        settled = await self.reconciler.settled(of_line.values())
        return [line for line in lines if line not in of_line or of_line[line][1] not in settled]
