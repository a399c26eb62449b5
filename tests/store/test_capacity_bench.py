"""`make capacity` at a tiny size: every part runs and finds sane figures; no time is asserted."""

import json

import pytest
from bench.capacity import measured, memory_bytes, to_json
from bench.capacity_parts import Sizes

TINY = Sizes(
    seconds=0.3, reservations=300, sidecars=(3,), calls_per_s=30, rounds=1, load_processes=1
)


@pytest.fixture(scope="module")
def found():
    return measured(TINY)


def test_a_shard_is_measured_from_reserve_to_archive(found):
    shard = {name: figure.median for name, figure in found["one shard"].items()}

    for what in ("reserve", "settle", "call"):
        assert shard[f"{what}_per_s"] > 0
    assert shard["reserve_count"] == shard["settle_count"] == TINY.reservations
    # (What a reservation takes is lost in the server's own comings and goings at this size.)
    assert 300 < shard["row_bytes"] < 2_000
    assert 300 < shard["archived_bytes"] < 4_000
    assert shard["log_bytes"] > shard["row_bytes"]
    assert memory_bytes(found["one shard"], 2) == 2 * memory_bytes(found["one shard"], 1)


def test_sidecars_look_at_the_store_that_they_share_and_charge_what_nobody_settles(found):
    shared = {name: figure.median for name, figure in found["3 sidecars"].items()}

    assert shared["connections"] >= 2
    assert shared["expiry_left"] == 0
    assert shared["p99_ms"] >= shared["p50_ms"] > 0
    assert shared["expiry_tries_per_lease"] >= 0.9


def test_a_cluster_spreads_orgs_over_its_nodes_and_leaves_one_org_on_one(found):
    assert found["Cluster, one org"]["busiest_share"].median > 0.6
    shares = [found[f"Cluster, {name}"]["call_per_s"].median for name in ("one org", "six orgs")]
    assert min(shares) > 0


def test_the_figures_are_written_as_json(found):
    assert json.loads(json.dumps(to_json(found)))["3 sidecars"]["busy"]["rounds"]
