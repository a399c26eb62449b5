"""Audits from time to time, in a process of its own: it is work, and no Check waits for it."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from extauthz.metrics import Metrics

_NICELY = "import os; os.nice(10); from extauthz.cli import main; main()"
_TIMEOUT_SECONDS = 600

log = logging.getLogger(__name__)


class AuditTimer:
    """Runs `extauthz audit` every so often, and tells the metrics and the log what it found.

    Where several services share a store, the one that has the archive does it.
    """

    def __init__(
        self,
        config_path: Path,
        every_seconds: float,
        metrics: Metrics,
        has_archive: Callable[[], bool],
    ) -> None:
        self._config_path, self._every_seconds = config_path, every_seconds
        self._metrics, self._has_archive = metrics, has_archive

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._every_seconds)
            if self._has_archive():
                await self.audit()

    async def audit(self) -> None:
        """Audit once. One that cannot be done changes no metric but its age, which grows."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", _NICELY, "audit", "--json", "-c", str(self._config_path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                out, err = await process.communicate()
        except TimeoutError:
            log.warning("an audit of the books took over %s s and was ended", _TIMEOUT_SECONDS)
            return
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            audits: list[dict[str, Any]] = json.loads(out)
        except ValueError:
            log.warning("the books cannot be audited now: %s", err.decode().strip()[-500:])
            return
        for audit in audits:
            self._tell(audit)

    def _tell(self, audit: dict[str, Any]) -> None:
        org, drifts = audit["org"], audit["drifts"]
        in_usd = [abs(Decimal(drift["drift"])) for drift in drifts if drift["unit"] == "usd"]
        self._metrics.ledger_drift_usd.labels(org).set(float(sum(in_usd)))
        self._metrics.ledger_audit_findings.labels(org).set(len(drifts) + len(audit["findings"]))
        self._metrics.ledger_audited_seconds.labels(org).set(time.time())
        for drift in drifts:
            log.error("a counter is not as the books say: %s", json.dumps(drift))
        for finding in audit["findings"]:
            log.error("the books of the org '%s': %s", org, finding)
