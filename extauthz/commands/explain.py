"""`extauthz ledger explain`: everything the books say of one call, and why it cost what it did."""

import argparse
from collections.abc import Mapping

from extauthz.commands.books import Books, run_over_books, with_books
from extauthz.commands.desk import CommandError, instant, shown
from extauthz.commands.price import bill_lines
from extauthz.commands.row_formats import note_of
from extauthz.commands.terminal import printable
from extauthz.commands.times import local
from extauthz.config import policies_of, prices_of
from extauthz.ledger import Posting, Row, RowOutcome, State
from extauthz.money import format_usd
from extauthz.policies import Policies, Unit
from extauthz.pricing import PRICE_LIST_VERSION, PriceBook
from extauthz.service.entries import BILLED, Entry
from extauthz.service.explanation import RatesFrom, by_list, is_other_list, recomputed
from extauthz.store.base import StoredReservation

_HAPPENED = {
    RowOutcome.SETTLED: "The call has ended, and is charged what it did cost.",
    RowOutcome.RELEASED: "It is proved that nothing was billed, by the provider's own status or as "
    "it refused the request unread: what was held is given back.",
    RowOutcome.ABANDONED: "The request never left for the provider: what was held is given back.",
    RowOutcome.EXPIRED_UNCONFIRMED: "Nothing told how the call ended before its lease ran out: "
    "charged the most that it could cost, until something tells.",
    RowOutcome.LATE: "How the call ended was told after its lease had been charged: corrected.",
    RowOutcome.ANOMALY: "The call had been given back, and did cost something after all: charged.",
    RowOutcome.RECOVERED: "The store had lost the reservation: charged by what the call itself "
    "carried.",
    RowOutcome.CONFLICT: "Another ending of the same call was told, which contradicts the first: "
    "nothing is changed.",
    RowOutcome.DEAD_LETTER: "It ended so long ago that its windows are forgotten: nothing is "
    "changed, and what it claims is only written down.",
    RowOutcome.OVERRIDE: "An operator has changed a limit, or paused or resumed somebody.",
    RowOutcome.REPAIR: "An operator has repaired a counter.",
    RowOutcome.OPENED: "The books were opened.",
}


def add_to(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`ledger explain`."""
    explain = kinds.add_parser("explain", help="say all that the books know of one call, and why")
    explain.add_argument(
        "id", metavar="ID", help="the reservation, or the decision as a refusal names it"
    )
    with_books(explain)
    explain.set_defaults(run=run_over_books(_explain))


async def _explain(books: Books, options: argparse.Namespace) -> None:
    wanted: str = options.id
    entries = [
        entry async for entry in books.entries() if wanted in (entry.row.id, entry.text("decision"))
    ]
    stored = await books.store.reservations(books.org, [wanted])
    if not entries and wanted not in stored:
        raise CommandError(
            f"{wanted}: the books of the org '{books.org}' say nothing of this id; write it as "
            "'ledger tail' and the log lines show it"
        )
    policies, prices = policies_of(books.config), prices_of(books.config)
    held = stored.get(wanted)
    lines = _who(entries[-1] if entries else _open_entry(wanted, held), books)
    for entry in entries:
        lines += ["", *_row(entry, books, policies, prices)]
    if held is not None and held.state is State.HELD:
        lines += ["", "The call is under way, or nothing has told yet how it ended: it is held."]
    print("\n".join(lines))


def _open_entry(id_: str, held: StoredReservation | None) -> Entry:
    """A call that no row is about yet, as the store remembers it."""
    particulars = held.particulars if held else ""
    return Entry.of(Row(0, 0, RowOutcome.OPENED, id_, particulars=particulars))


def _who(entry: Entry, books: Books) -> list[str]:
    """Who asked for what, and the most it could cost."""
    if not entry.text("agent"):
        return [printable(entry.row.id)]
    estimate = entry.number("estimate_nanousd")
    facts = {
        "call": entry.row.id,
        "decision": f"{entry.text('decision')}, allowed {local(entry.called_at_ms, books.zone)}",
        "agent": entry.text("agent"),
        "team": entry.text("team"),
        "key": entry.text("key"),
        "asked for": f"{entry.text('model')} at {entry.text('provider')}",
        "estimate": "" if estimate is None else f"at most {format_usd(estimate)} USD, held",
    }
    return [f"{name:<10}{printable(word)}" for name, word in facts.items() if word]


def _row(entry: Entry, books: Books, policies: Policies, prices: PriceBook) -> list[str]:
    row = entry.row
    lines = [
        f"row {row.seq}  {local(row.at_ms, books.zone)}  {row.outcome.value}",
        f"  {_HAPPENED[row.outcome]}",
    ]
    if note := note_of(entry):
        lines.append(f"  noted     {printable(note)}")
    if told := _told(entry):
        lines.append(f"  told      {printable(told)}")
    if row.outcome in BILLED:
        lines += [f"  {line}" for line in _cost(entry, policies, prices)]
    if row.postings:
        before = (
            f", before {format_usd(row.cost_before_nanousd)}" if row.cost_before_nanousd else ""
        )
        lines.append(f"  charged   {format_usd(row.cost_nanousd)} USD{before}")
    units = {budget.id: budget.unit for budget in policies.budgets}
    lines += [f"  budget    {printable(_posting(posting, units))}" for posting in row.postings]
    return lines


def _told(entry: Entry) -> str:
    """What Envoy and the response said of the ending."""
    status, duration_ms = entry.number("status"), entry.number("duration_ms")
    words = [
        "" if status is None else f"status {status}" if status else "no status",
        "" if duration_ms is None else f"after {duration_ms} ms",
        f"served {entry.text('served_model')}" if entry.text("served_model") else "",
        f"usage {entry.text('usage_is').replace('_', ' ')}" if entry.text("usage_is") else "",
    ]
    return ", ".join(word for word in words if word)


def _cost(entry: Entry, policies: Policies, prices: PriceBook) -> list[str]:
    """Why a row charges what it charges."""
    row, estimate = entry.row, entry.number("estimate_nanousd")
    if entry.text("adjusted"):
        return ["An operator has said what it did cost."]
    if not entry.text("usage_is"):
        return ["It is proved that nothing was billed."] if not row.cost_nanousd else []
    if entry.text("usage_is") == "exact" and not entry.usage:
        return ["Charged the endpoint's fixed price, which the config names."]
    found = recomputed(entry, policies, prices)
    if found is None:
        if row.cost_nanousd == estimate:
            return ["What was used, or its price, is not known: charged the estimate."]
        return ["What was used, or its price, is not known now: nothing can be worked out again."]
    price = entry.text("price") or "an unknown price list"
    lines = [f"priced as {printable(entry.text('priced_as') or '?')} by {printable(price)}:"]
    lines += [f"  {line}" for line in bill_lines(found.bill, found.cost_nanousd)]
    if found.told_nanousd is not None:
        lines.append("The provider itself said that it charges more than its rates: that counts.")
    lines.append(_verdict(entry, found.cost_nanousd, estimate))
    return lines + _by_which_list(entry, found.rates_from, policies, prices)


def _verdict(entry: Entry, cost_nanousd: int, estimate: int | None) -> str:
    charged = entry.row.cost_nanousd
    if charged == cost_nanousd:
        beyond = estimate is not None and charged > estimate
        return "This equals what was charged" + (", beyond the estimate." if beyond else ".")
    if entry.text("usage_is") == "lower_bound" and charged == estimate:
        return "The answer was cut, so that is the least it did cost: charged the estimate."
    return f"This does NOT equal what was charged, {format_usd(charged)} USD."


def _by_which_list(
    entry: Entry, rates_from: RatesFrom, policies: Policies, prices: PriceBook
) -> list[str]:
    if rates_from is RatesFrom.NOW:
        lines = ["(The row keeps no rates: these are those of today's config and price list.)"]
    else:
        lines = []
    if not is_other_list(entry):
        return lines
    now = by_list(entry, policies, prices)
    would = f"would be {format_usd(now.cost_nanousd)} USD" if now else "has no price"
    said = f"The price list installed now is another, {PRICE_LIST_VERSION}: by it this {would}."
    return [*lines, said]


def _posting(posting: Posting, units: Mapping[str, Unit]) -> str:
    """What a row does to one budget: `agent/bot/day/usd from 2026-11-23T00:00:00Z: ...`."""
    id_, _, window = posting.counter.rpartition(":")
    if window == "total":
        since = ""
    elif window.startswith("rolling-"):
        since = ", rolling"
    else:
        since = f" from {instant(int(window) * 1000)}" if window.isdecimal() else f" {window}"
    # (those that are no budget of the config any more say their unit in their name, mostly)
    named = [Unit(word) for word in id_.split("/") if word in tuple(Unit)]
    unit = units.get(id_) or (named[-1] if named else None)

    def amount(number: int) -> str:
        if id_.endswith("/in_flight"):
            return f"{number} in flight"
        return shown(number, unit) if unit else f"{number} (of an unknown unit)"

    words = []
    if posting.held:
        words.append(f"held -{amount(posting.held)}")
    sign = "" if posting.change < 0 else "+"
    if posting.change or not posting.held:
        words.append(f"spent {sign}{amount(posting.change)}")
    return f"{id_}{since}: {', '.join(words)}"
