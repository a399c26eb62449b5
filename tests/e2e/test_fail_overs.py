"""The store's primary falls, and what it had not replicated is made again from the archive."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from calls import chat, post
from clusters import Sentinels
from servers import until
from sidecar import Sidecar, agent, running_sidecar

from extauthz.server.data_dir import DataDir
from extauthz.servicers.log_files import Place

PATIENCE_SECONDS = 60


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as servers:
        yield servers


@pytest.fixture
def sidecar(sentinels: Sentinels) -> Iterator[Sidecar]:
    """Leases are as long as they are in production: none runs out in this test."""
    agents = agent("known", "1000.00")
    with running_sidecar(agents=agents, store={"url": sentinels.url}) as running:
        yield running


def test_settlements_that_a_fail_over_lost_are_made_again_from_the_archive(
    sentinels: Sentinels, sidecar: Sidecar
) -> None:
    def call() -> None:
        assert post(sidecar, "known", chat()).status == 200
        sidecar.until_settled()

    def bill() -> int:
        return sidecar.sandbox.total_nanousd()

    call()
    until(sentinels.is_in_sync)
    replicated = bill()
    sentinels.part()
    for _ in range(3):
        call()
    assert sidecar.balance("known") == (bill(), 0)
    # The service has gone through these lines: by itself it would not look at them again.
    until(lambda: gone_through(sidecar), PATIENCE_SECONDS)

    sentinels.primary.kill()
    until(lambda: sentinels.named() == {sentinels.replica.port}, PATIENCE_SECONDS)
    until(lambda: sidecar.metric("extauthz_store_primary_changes_total") == 1, PATIENCE_SECONDS)
    # The archive has rows that the new primary lacks: nothing is let through until it has them.
    until(lambda: "has lost rows" in sidecar.output, PATIENCE_SECONDS)
    rebuilt = subprocess.run(
        [sys.executable, "-m", "extauthz", "ledger", "rebuild", "--reason", "fail-over", "-c",
         str(sidecar.config_path)],
        check=False, capture_output=True, text=True, env=sidecar.env, timeout=120,
    )  # fmt: skip
    assert rebuilt.returncode == 0, rebuilt.stderr
    until(lambda: sidecar.balance("known") == (bill(), 0), PATIENCE_SECONDS)

    assert bill() > replicated
    until(lambda: post(sidecar, "known", chat()).status == 200, PATIENCE_SECONDS)


def gone_through(sidecar: Sidecar) -> bool:
    """Whether the service's bookmark is at the end of Envoy's file log."""
    data_dir = DataDir(sidecar.data_dir)
    place = Place.load(data_dir.access_log_bookmark)
    return place is not None and place.offset == data_dir.access_log.stat().st_size
