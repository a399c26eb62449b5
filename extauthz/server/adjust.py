"""An operator who knows what a call did cost corrects the ledger."""

import json
from dataclasses import dataclass

from extauthz.config import Config, policies_of
from extauthz.errors import OperatorError
from extauthz.ledger import (
    Charge,
    ClockSkewError,
    CounterRangeError,
    Ending,
    HoldsMismatchError,
    Outcome,
    Settle,
    State,
)
from extauthz.money import format_usd
from extauthz.policies import Budget, Policies, Unit
from extauthz.server.archives import archives_of, expect_books
from extauthz.server.data_dir import DataDir
from extauthz.server.in_force import as_recorded
from extauthz.server.store_url import store_url
from extauthz.service.rules import system_clock
from extauthz.store.base import LedgerStore, StoredReservation, org_prefix
from extauthz.store.redis import RedisStore


class AdjustError(OperatorError):
    """The reservation cannot be adjusted; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What an operator knows of a call, and how."""

    id: str
    cost_nanousd: int
    tokens: int | None
    reason: str


async def adjust(config: Config, adjustment: Adjustment) -> Outcome:
    """Settle a reservation at its true cost, and keep the reason.

    Raises:
        AdjustError, StoreError: nothing was changed.
    """
    store = RedisStore.from_url(store_url(config))
    try:
        policies = as_recorded(DataDir(config.data_dir).in_force, policies_of(config))
        expect_books(store, config, archives_of(config), policies.all_orgs)
        ending = await adjusted(store, policies, adjustment)
    except (ClockSkewError, CounterRangeError, HoldsMismatchError) as error:
        raise AdjustError(f"{adjustment.id}: {error}") from error
    finally:
        await store.close()
    return ending.outcome


async def adjusted(store: LedgerStore, policies: Policies, adjustment: Adjustment) -> Ending:
    """Settle a reservation at its true cost.

    Raises:
        AdjustError: it is unknown, is settled at another cost, or stands on counters whose unit
            the config does not tell.
        StoreError, ClockSkewError, CounterRangeError: nothing was changed.
    """
    for org in policies.all_orgs:
        stored = (await store.reservations(org, [adjustment.id])).get(adjustment.id)
        if stored is not None:
            break
    else:
        raise AdjustError(
            f"{adjustment.id}: no reservation of this id is known; one is forgotten when the "
            "settle horizon after its end is over"
        )
    if stored.state is State.SETTLED:
        return _settled(adjustment, stored)
    if not stored.counters:
        raise AdjustError(f"{adjustment.id}: was given back before it was ever held")
    now_ms = system_clock()
    command = Settle(
        adjustment.id,
        org,
        now_ms,
        now_ms,
        policies.settle_horizon_ms,
        _charges(policies, org, stored, adjustment),
        adjustment.cost_nanousd,
        _particulars(stored, adjustment),
    )
    ending = await store.settle(command)
    if ending.outcome is Outcome.CONFLICT:
        raise AdjustError(f"{adjustment.id}: was settled at another cost just now: look again")
    return ending


def _settled(adjustment: Adjustment, stored: StoredReservation) -> Ending:
    if stored.cost_nanousd == adjustment.cost_nanousd:
        return Ending(adjustment.id, Outcome.DUPLICATE, stored.charged)
    raise AdjustError(
        f"{adjustment.id}: is settled already, at {format_usd(stored.cost_nanousd)} USD: what the "
        "provider's own usage has settled is final"
    )


def _charges(
    policies: Policies, org: str, stored: StoredReservation, adjustment: Adjustment
) -> tuple[Charge, ...]:
    budgets = (
        *policies.budgets,
        *(one.budget for one in policies.outgoing),
        *_budgets_of_made(policies, stored),
    )
    units = {budget.id: budget.unit for budget in budgets if budget.org == org}
    charges = []
    for at, (key, forget_at_ms) in enumerate(stored.counters):
        id_ = key.removeprefix(f"{org_prefix(org)}c:").rpartition(":")[0]
        if id_ not in units and not id_.endswith("/in_flight"):
            raise AdjustError(
                f"{adjustment.id}: counts on the budget '{id_}', which is not in the config any "
                "more: put it back to say in what it counts"
            )
        match units.get(id_):
            case Unit.USD:
                amount = adjustment.cost_nanousd
            case Unit.REQUESTS:
                amount = 1
            case Unit.TOKENS if adjustment.tokens is not None:
                amount = adjustment.tokens
            case Unit.TOKENS if stored.charged:
                amount = stored.charged[at]  # as it is
            case Unit.TOKENS:
                raise AdjustError(f"{adjustment.id}: is open, on a budget in tokens: add --tokens")
            case _:
                amount = 0  # calls in flight
        charges.append(Charge(key, amount, forget_at_ms))
    return tuple(charges)


def _budgets_of_made(policies: Policies, stored: StoredReservation) -> tuple[Budget, ...]:
    """Those of an agent that was made on first sight, which the config does not name."""
    name = json.loads(stored.particulars or "{}").get("agent")
    if policies.template is None or not isinstance(name, str):
        return ()
    return policies.template.named(name).budgets


def _particulars(stored: StoredReservation, adjustment: Adjustment) -> str:
    """What the row says: who asked for what, and who says now what it did cost."""
    known: dict[str, object] = json.loads(stored.particulars or "{}")
    told = {"adjusted": adjustment.reason, "tokens": adjustment.tokens}
    words = known | {name: word for name, word in told.items() if word is not None}
    return json.dumps(words, separators=(",", ":"))
