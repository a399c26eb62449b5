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


async def test_an_audit_that_hangs_is_ended_and_the_next_one_follows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("extauthz.server.audits._NICELY", "import time; time.sleep(600)")
    monkeypatch.setattr("extauthz.server.audits._TIMEOUT_SECONDS", 0.05)
    timer = AuditTimer(Path("x"), 0.001, Metrics(), lambda: True)

    task = asyncio.create_task(timer.run())
    while caplog.text.count("was ended") < 2:
        assert not task.done()
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_audit_that_cannot_be_done_says_why(caplog: pytest.LogCaptureFixture, tmp_path):
    await AuditTimer(tmp_path / "none.yaml", 1, Metrics(), lambda: True).audit()

    assert "the books cannot be audited now" in caplog.text
    assert "none.yaml" in caplog.text


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
