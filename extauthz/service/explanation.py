"""Whether what a row charges is what its usage costs: by the row's own rates, and by the list's."""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum

from extauthz.money import AMOUNT_MAX, AmountError, ceil_nanousd
from extauthz.policies import Policies
from extauthz.pricing import CONFIG_PRICE, PRICE_LIST_VERSION, BillLine, PriceBook, total_nanousd
from extauthz.service.entries import Entry
from extauthz.usage import Exactness, UsageReport


class RatesFrom(StrEnum):
    """Where the rates of a recomputation come from."""

    ROW = "row"
    """those that were applied, as the row keeps them"""
    NOW = "now"
    """those of today's config and price list: the row keeps none"""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A cost worked out again.

    Attributes:
        rates_from: where its rates come from.
        bill: what it is made of.
        cost_nanousd: what the ledger charges for that.
        told_nanousd: what the provider itself said, where that is more: then it is charged.
    """

    rates_from: RatesFrom
    bill: tuple[BillLine, ...]
    cost_nanousd: int
    told_nanousd: int | None = None


def recomputed(entry: Entry, policies: Policies, prices: PriceBook) -> Recomputed | None:
    """What the usage in a row costs; None: it tells no usage, or there is no price for it."""
    if entry.bill:
        try:
            by_rates = total_nanousd(entry.bill)
            told = ceil_nanousd(Decimal(entry.text("told_cost_usd") or "0"))
        except (AmountError, InvalidOperation):
            return None
        cost_nanousd = min(max(by_rates, told), AMOUNT_MAX)
        return Recomputed(
            RatesFrom.ROW, entry.bill, cost_nanousd, told if told > by_rates else None
        )
    return by_list(entry, policies, prices)


def by_list(entry: Entry, policies: Policies, prices: PriceBook) -> Recomputed | None:
    """What the usage in a row costs by the config's prices and the installed price list."""
    upstream = policies.upstreams.get(entry.text("provider"))
    if upstream is None or not entry.usage:
        return None
    priced = prices.settled_at(
        upstream.name,
        upstream.price_provider,
        entry.text("model"),
        entry.text("served_model") or None,
    )
    if priced is None:
        return None
    context = entry.words.get("price_context")
    words = context.items() if isinstance(context, dict) else ()
    price_context = {str(name): str(word) for name, word in words}
    report = UsageReport(Exactness.EXACT, entry.usage, price_context=price_context)
    try:
        cost_nanousd = min(priced.cost(report, entry.called_at_ms), AMOUNT_MAX)
        bill = priced.bill(report, entry.called_at_ms)
    except ValueError:
        return None
    return Recomputed(RatesFrom.NOW, bill, cost_nanousd)


def is_other_list(entry: Entry) -> bool:
    """Whether the row was priced by a list of another version than the installed one."""
    price = entry.text("price")
    return price not in ("", CONFIG_PRICE, PRICE_LIST_VERSION)
