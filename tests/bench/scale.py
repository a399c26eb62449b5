"""Whether a Check takes longer where there is more of everything: agents, reservations, budgets."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from bench.check_rate import checks, opens, ours
from bench.check_request import check_request
from bench.measure import Figures, Sample, in_turn
from bench.processes import resident_bytes, until
from bench.product import AGENT, KEY, Product, running_product, three_budgets
from extauthz.identity import hash_key

AGENTS, RESERVATIONS = 10_000, 50_000
_BATCH = 5_000


def many_agents() -> dict[str, Any]:
    """As `three_budgets`, with so many other agents."""
    changes = three_budgets()
    changes["agents"] |= {
        f"agent-{number}": {
            "keys": [hash_key(f"xa_bench_key_{number}")],
            "budgets": [{"limit": 10, "window": "day"}],
        }
        for number in range(AGENTS)
    }
    return changes


def eight_budgets() -> dict[str, Any]:
    """The agent's day and month in dollars, tokens and requests, its team's and its org's."""
    changes = three_budgets()
    changes["agents"][AGENT]["budgets"] = [
        {"limit": 1_000_000_000 if unit != "usd" else 1_000_000, "unit": unit, "window": window}
        for unit in ("usd", "tokens", "requests")
        for window in ("day", "month")
    ]
    return changes


def scale(upstream_port: int, rounds: int, count: int) -> Figures:
    """One of everything, and many of each, in turn."""
    with ExitStack() as stack:

        def started(**changes: Any) -> Product:
            product = stack.enter_context(running_product(upstream_port, **changes))
            until(lambda: opens(product), "the product does not let every call through")
            return product

        one, agents, budgets, full = (
            started(),
            started(**many_agents()),
            started(**eight_budgets()),
            started(),
        )
        empty_bytes = resident_bytes(full.service), resident_bytes(full.store)
        for _ in range(RESERVATIONS // _BATCH):
            checks(full.check_socket, check_request(KEY).SerializeToString(), _BATCH)
        service_grew = resident_bytes(full.service) - empty_bytes[0]
        store_grew = resident_bytes(full.store) - empty_bytes[1]
        per_agent = (resident_bytes(agents.service) - resident_bytes(one.service)) / AGENTS

        def with_memory(run: Callable[[], Sample], **memory: float) -> Callable[[], Sample]:
            return lambda: {**run(), **memory}

        return in_turn(
            {
                "one": ours(one, count),
                "agents": with_memory(ours(agents, count), service_bytes=per_agent),
                "reservations": with_memory(
                    ours(full, count),
                    service_bytes=service_grew / RESERVATIONS,
                    store_bytes=store_grew / RESERVATIONS,
                ),
                "8 budgets": ours(budgets, count),
            },
            rounds,
        )
