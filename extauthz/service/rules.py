"""The rules in force: replaced as a whole on reload, so that one decision sees one version."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from extauthz.policies import Policies
from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS

Clock = Callable[[], int]
"""Epoch milliseconds; injected, so that tests can move through days."""


def system_clock() -> int:
    """The machine's clock."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Rules:
    """What authorize and settle look things up in."""

    policies: Policies
    prices: PriceBook

    def unbilled_status(self, provider: str) -> frozenset[int]:
        """The statuses of its own for which a configured provider bills nothing."""
        upstream = self.policies.upstreams.get(provider)
        # Of one that is no longer configured nothing is known: only what never left is proof.
        return ADAPTERS[upstream.api].unbilled_status if upstream else frozenset()
