"""Keeps Envoy's file access log from growing without bound; for the Envoy that `up` runs."""

import asyncio
import logging
import re
import time
from pathlib import Path

import aiohttp

from extauthz.server.data_dir import DataDir
from extauthz.server.envoy import EnvoyAdmin
from extauthz.servicers.log_files import LogFiles, Place

SIZE_MAX = 64 * 1024 * 1024
_KEPT = 2
"""rotated files that stay although they are reconciled, for a person to look at"""
_EVERY_SECONDS = 5.0
_STAMP = re.compile(r"\.\d{13}")
"""what a file is renamed with: the time in milliseconds"""

log = logging.getLogger(__name__)


class LogRotation:
    """Renames the log at a size, and deletes what the service has reconciled."""

    def __init__(self, data_dir: DataDir, admin: EnvoyAdmin, size_max: int = SIZE_MAX) -> None:
        self._path = data_dir.access_log
        self._bookmark = data_dir.access_log_bookmark
        self._admin = admin
        self._size_max = size_max

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except (OSError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("the access log cannot be rotated now: %s", error)
            await asyncio.sleep(_EVERY_SECONDS)

    async def look(self) -> None:
        """Rotate if it is time, and delete what is not needed any more."""
        if self._path.exists() and self._path.stat().st_size > self._size_max:
            # Envoy writes on into the renamed file until it is told; no line is between the two.
            self._path.rename(f"{self._path}.{time.time_ns() // 1_000_000}")
        if not self._path.exists() and self._rotated():
            await self._admin.reopen_logs()
        for path in self._not_needed():
            path.unlink()

    def _not_needed(self) -> list[Path]:
        """What this has rotated away and the service has gone through, but for the last few."""
        files = LogFiles(self._path)
        found = files.found()
        index = files.find(Place.load(self._bookmark), found)
        own = self._rotated()
        done = [file.path for file in found[: index or 0] if file.path in own]
        return [path for path in done if path not in own[-_KEPT:]]

    def _rotated(self) -> list[Path]:
        """Oldest first."""
        own = self._path.parent.glob(f"{self._path.name}.*")
        return sorted(path for path in own if _STAMP.fullmatch(path.suffix))
