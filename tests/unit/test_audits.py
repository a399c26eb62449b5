"""The service audits its books from time to time, if it is the one that has them."""

import asyncio
from pathlib import Path

import pytest

from extauthz.metrics import Metrics
from extauthz.server.audits import AuditTimer


async def test_only_the_service_that_has_the_archive_audits(monkeypatch: pytest.MonkeyPatch):
    asked, done = [], asyncio.Event()

    def has_archive() -> bool:
        asked.append(None)
        return len(asked) > 3

    async def audit(_: AuditTimer) -> None:
        done.set()

    monkeypatch.setattr(AuditTimer, "audit", audit)
    timer = AuditTimer(Path("extauthz.yaml"), 0.001, Metrics(), has_archive)
    task = asyncio.create_task(timer.run())
    await asyncio.wait_for(done.wait(), 30)
    task.cancel()

    assert len(asked) == 4


async def test_without_an_interval_nothing_is_audited():
    await asyncio.wait_for(AuditTimer(Path("x"), 0, Metrics(), lambda: True).run(), 30)


async def test_what_an_audit_found_is_told_by_org(caplog: pytest.LogCaptureFixture):
    metrics = Metrics()
    timer = AuditTimer(Path("x"), 1, metrics, lambda: True)

    timer._tell(
        {
            "org": "default",
            "drifts": [
                {"counter": "a", "unit": "usd", "drift": "-0.25"},
                {"counter": "b", "unit": "usd", "drift": "0.5"},
                {"counter": "c", "unit": "requests", "drift": "7"},
            ],
            "findings": ["row 3 is missing"],
        }
    )

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"org": "default"})

    assert value("extauthz_ledger_drift_usd") == 0.75
    assert value("extauthz_ledger_audit_findings") == 4
    assert "row 3 is missing" in caplog.text
