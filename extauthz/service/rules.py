"""The rules in force: replaced as a whole on reload, so that one decision sees one version."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from extauthz.policies import Agent, Policies
from extauthz.pricing import PriceBook
from extauthz.providers import ADAPTERS
from extauthz.providers.base import CapturedResponse
from extauthz.providers.captured import decode_string

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

    def take_over(self, policies: Policies, prices: PriceBook) -> None:
        """Put others into force; agents that were made on first sight stay, under the new ones."""
        for name in self.policies.made:
            policies = policies.with_made(name)
        self.policies, self.prices = policies, prices

    def make_agent(self, name: str) -> Agent | None:
        """An agent that is seen for the first time; None if there are as many as there may be."""
        self.policies = self.policies.with_made(name)
        return self.policies.agents.get(name)

    def unbilled_status(self, provider: str, captured: CapturedResponse) -> frozenset[int]:
        """The statuses of its own for which a configured provider bills nothing, by its answer."""
        upstream = self.policies.upstreams.get(provider)
        if upstream is None:
            # Of one that is no longer configured nothing is known: only what never left is proof.
            return frozenset()
        adapter = ADAPTERS[upstream.api]
        is_proof = decode_string(captured.error_code) in adapter.unbilled_codes
        return adapter.unbilled_status | ({400} if is_proof else set())
