"""How far estimates are above costs, over calls whose request and usage a provider documents.

Run it by `make tightness`. The samples are in tightness.json, each with its source.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import Request
from extauthz.usage import Exactness, UsageReport

SAMPLES: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("tightness.json").read_text(encoding="utf-8")
)

AT_MS = 1_795_000_000_000
"""Of the prices."""


@dataclass(frozen=True)
class Tightness:
    """One call: what was estimated, and what it did cost, in nano-USD (input in tokens)."""

    estimate: int
    estimate_under_its_output: int
    cost: int
    input_estimate: int
    input_tokens: int


def tightness_of(sample: dict[str, Any]) -> Tightness:
    """Read a sample as Check reads a call, and price its usage as a settlement does."""
    adapter = ADAPTERS[sample["api"]]
    body = json.dumps(sample["request"]).encode()
    facts = adapter.read_request(sample["endpoint"], Request(body))
    priced = PriceBook([]).find(sample["api"], adapter.price_provider, facts.model)
    assert priced is not None
    estimate = priced.estimate(facts, AT_MS, None)
    tokens = {name: sample[name] for name in ("input_tokens", "output_tokens")}
    return Tightness(
        estimate.nanousd,
        # (a model that passes over caps is held at its most whatever is written)
        estimate.nanousd_under.at(tokens["output_tokens"] if priced.caps_bind else estimate.cap),
        priced.cost(UsageReport(Exactness.EXACT, tokens), AT_MS),
        estimate.input_tokens,
        tokens["input_tokens"],
    )


def figure(ratios: Sequence[float]) -> str:
    """Median and 95th percentile."""
    ranked = sorted(ratios)
    p95 = ranked[math.ceil(0.95 * len(ranked)) - 1]
    return f"median {median(ranked):8.1f}   p95 {p95:8.1f}"


def main() -> None:
    """Print the figures."""
    calls = [tightness_of(sample) for sample in SAMPLES]
    print(f"{len(calls)} documented calls: estimate / cost")
    print("  as the call was sent        ", figure([c.estimate / c.cost for c in calls]))
    capped = figure([c.estimate_under_its_output / c.cost for c in calls])
    print("  capped at its true output   ", capped)
    inputs = figure([c.input_estimate / c.input_tokens for c in calls])
    print("  tokens of the input alone   ", inputs)


if __name__ == "__main__":
    main()
