"""`extauthz spend`: what was spent, by whom or on what, summed up from the books."""

import argparse
import json
from zoneinfo import ZoneInfo

from extauthz.commands.books import Books, filter_of, run_over_books, with_books, with_filters
from extauthz.commands.terminal import bar, columns, printable, room
from extauthz.commands.times import local, utc
from extauthz.money import NANOUSD_PER_USD, format_usd
from extauthz.service.entries import EntryFilter
from extauthz.service.spending import DIMENSIONS, Spending, Spent, total_of

_BAR_MAX = 30
_BAR_MIN = 4


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    spend = commands.add_parser("spend", help="show what was spent, by agent, team, model, day ...")
    spend.add_argument("--by", choices=DIMENSIONS, required=True, help="what to sum up by")
    spend.add_argument("--json", action="store_true", help="one JSON object, for machines")
    with_filters(spend, by_call=True)
    with_books(spend)
    spend.set_defaults(run=run_over_books(_spend))


async def _spend(books: Books, options: argparse.Namespace) -> None:
    wanted = filter_of(options, books.zone)
    spending = Spending.by(options.by, books.zone.key)
    async for entry in books.entries():
        if wanted.wants(entry, entry.called_at_ms):
            spending.add(entry)
    groups = spending.result()
    if options.json:
        print(json.dumps(_as_json(books, wanted, options.by, groups), indent=2))
    else:
        print("\n".join(_as_table(books, wanted, options.by, groups)))


def _as_json(
    books: Books, wanted: EntryFilter, by: str, groups: dict[str, Spent]
) -> dict[str, object]:
    return {
        "org": books.org,
        "by": by,
        "since": None if wanted.since_ms is None else utc(wanted.since_ms),
        "until": None if wanted.until_ms is None else utc(wanted.until_ms),
        "timezone": books.zone.key,
        "groups": [{by: name, **_sums(spent)} for name, spent in _sorted(by, groups)],
        "total": _sums(total_of(groups)),
    }


def _sums(spent: Spent) -> dict[str, int | str]:
    return {
        "calls": spent.calls,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
        "usd": format_usd(spent.nanousd),
        "unconfirmed_calls": spent.unconfirmed_calls,
        "unconfirmed_usd": format_usd(spent.unconfirmed_nanousd),
    }


def _as_table(books: Books, wanted: EntryFilter, by: str, groups: dict[str, Spent]) -> list[str]:
    title = f"Spent by {by}, org {books.org}, {_period(wanted, books.zone)}"
    if not groups:
        return [title, "", "Nothing was spent."]
    total = total_of(groups)
    named = [*_sorted(by, groups), ("total", total)]
    places = max(len(format_usd(spent.nanousd).partition(".")[2]) for _, spent in named)
    rows: list[tuple[str, ...]] = [(by, "calls", "tokens in", "tokens out", "USD")]
    for name, spent in named:
        counts = (spent.calls, spent.input_tokens, spent.output_tokens)
        texts = [f"{count:,}" for count in counts]
        rows.append((printable(name) or "(none)", *texts, _padded(spent.nanousd, places)))
    lines = columns(rows, (False, True, True, True, True), room())
    left = min(_BAR_MAX, room() - len(lines[0]) - 2)
    if left >= _BAR_MIN:
        most = max(spent.nanousd for spent in groups.values())
        for at, (_, spent) in enumerate(named[:-1], start=1):
            lines[at] = f"{lines[at]}  {bar(spent.nanousd, most, left)}".rstrip()
    if total.unconfirmed_calls:
        lines += ["", *_unconfirmed(total)]
    return [title, "", *lines]


def _unconfirmed(total: Spent) -> list[str]:
    one = total.unconfirmed_calls == 1
    calls = "1 call was" if one else f"{total.unconfirmed_calls:,} calls were"
    lease = "its lease" if one else "their leases"
    usd = format_usd(total.unconfirmed_nanousd)
    return [
        f"Of this {usd} USD are unconfirmed: {calls} charged when {lease} ran out,",
        "and nothing has told since what was used ('ledger tail --outcome expired_unconfirmed').",
    ]


def _sorted(by: str, groups: dict[str, Spent]) -> list[tuple[str, Spent]]:
    """Days in their order, everything else by what was spent."""
    if by == "day":
        return sorted(groups.items())
    return sorted(groups.items(), key=lambda item: (-item[1].nanousd, item[0]))


def _period(wanted: EntryFilter, zone: ZoneInfo) -> str:
    since = "the first" if wanted.since_ms is None else local(wanted.since_ms, zone)
    until = "now" if wanted.until_ms is None else local(wanted.until_ms, zone)
    return f"calls from {since} to {until}, days in {zone.key} time"


def _padded(nanousd: int, places: int) -> str:
    """An exact amount with so many decimal places, so that the points stand below each other."""
    sign = "-" if nanousd < 0 else ""
    whole, fraction = divmod(abs(nanousd), NANOUSD_PER_USD)
    return f"{sign}{whole:,}.{f'{fraction:09d}'[:places]}"
