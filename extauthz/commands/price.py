"""`extauthz price`: what a call costs, kind by kind, as the ledger would charge it."""

import argparse
import json
from collections.abc import Iterable

from extauthz.commands.desk import with_config
from extauthz.commands.terminal import columns, printable, quiet_when_unread, room
from extauthz.commands.times import instant_of, local, utc, zone_of
from extauthz.config import load, policies_of, prices_of
from extauthz.money import format_usd
from extauthz.pricing import BillLine
from extauthz.service.price_check import PriceCheck, price_check
from extauthz.service.rules import system_clock

_KINDS = (
    ("input", "input_tokens", "all tokens that go in, the cached ones included"),
    ("output", "output_tokens", "all tokens that come out, reasoning included"),
    ("cached", "cache_read_tokens", "of the input, read from a cache"),
    ("cache-write", "cache_write_tokens", "of the input, written to a cache"),
    ("cache-write-1h", "cache_write_1h_tokens", "of these, for an hour"),
    ("reasoning", "output_reasoning_tokens", "of the output, reasoning"),
    ("audio-in", "input_audio_tokens", "of the input, sound"),
    ("audio-out", "output_audio_tokens", "of the output, sound"),
)


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    price = commands.add_parser("price", help="show what a call would cost, kind by kind")
    price.add_argument("model", metavar="MODEL", help="as a call names it")
    for name, _, what in _KINDS:
        required = name in ("input", "output")
        price.add_argument(
            f"--{name}", type=_tokens, metavar="N", required=required, help=f"tokens: {what}"
        )
    price.add_argument(
        "--provider", metavar="NAME", help="one of the config's (default: the one that has MODEL)"
    )
    price.add_argument(
        "--at", metavar="TIME", help="by the prices of then: 24h, 7d, a date or an ISO 8601 time"
    )
    price.add_argument(
        "--timezone", metavar="ZONE", help="of dates and times (default: defaults.timezone)"
    )
    price.add_argument("--json", action="store_true", help="one JSON object, for machines")
    with_config(price)
    price.set_defaults(run=_price)


def _tokens(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number of tokens, such as 1000")
    return int(text)


def _price(options: argparse.Namespace) -> None:
    config = load(options.config)
    zone = zone_of(options.timezone or config.defaults.timezone)
    now_ms = system_clock()
    at_ms = now_ms if options.at is None else instant_of("--at", options.at, zone, now_ms)
    given = {kind: getattr(options, name.replace("-", "_")) for name, kind, _ in _KINDS}
    check = price_check(
        policies_of(config),
        prices_of(config),
        options.model,
        options.provider,
        {kind: count for kind, count in given.items() if count is not None},
        at_ms,
    )
    with quiet_when_unread():
        if options.json:
            print(json.dumps(_as_json(check, options.model, at_ms), indent=2))
            return
        version = check.priced.price_version
        print(
            f"{printable(options.model)} at {check.provider}, priced as {check.priced.info.id} by "
            f"{version}, on {local(at_ms, zone)}\n"
        )
        print("\n".join(bill_lines(check.bill, check.cost_nanousd)))


def bill_lines(bill: Iterable[BillLine], cost_nanousd: int) -> list[str]:
    """A bill as aligned lines: how much of each kind, at which rate, and what that is together."""
    rows = [
        (line.kind, f"{line.count:,}", f"x {line.rate:f}", f"per {line.per:,}", f"{line.usd:f}")
        for line in bill
    ]
    rows.append(("total, rounded up once", "", "", "", format_usd(cost_nanousd)))
    return [f"{line} USD" for line in columns(rows, (False, True, True, False, True), room())]


def _as_json(check: PriceCheck, model: str, at_ms: int) -> dict[str, object]:
    return {
        "gen_ai.provider.name": check.provider,
        "gen_ai.request.model": model,
        "priced_as": check.priced.info.id,
        "price": check.priced.price_version,
        "time": utc(at_ms),
        "bill": [
            {
                "kind": line.kind,
                "count": line.count,
                "rate_usd": f"{line.rate:f}",
                "per": line.per,
                "usd": f"{line.usd:f}",
            }
            for line in check.bill
        ],
        "cost_usd": format_usd(check.cost_nanousd),
    }
