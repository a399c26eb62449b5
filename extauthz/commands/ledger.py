"""`extauthz ledger`: reading the books, proving them, and correcting what a call was charged."""

import argparse
import asyncio

from extauthz.commands import audit, explain, ledger_verify, rows
from extauthz.commands.desk import with_config
from extauthz.config import load
from extauthz.money import AMOUNT_MAX, AmountError, format_usd, parse_usd
from extauthz.server.adjust import AdjustError, Adjustment, adjust


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`ledger tail | export | explain | verify | rebuild | adjust`."""
    ledger = commands.add_parser(
        "ledger", help="read the books, prove them, and correct what a call was charged"
    )
    kinds = ledger.add_subparsers(required=True, metavar="COMMAND")
    rows.add_to(kinds)
    explain.add_to(kinds)
    ledger_verify.add_to(kinds)
    audit.add_rebuild_to(kinds)
    parser = kinds.add_parser("adjust", help="correct what a lease has charged to the true cost")
    parser.add_argument("id", metavar="ID", help="the reservation, as 'ledger tail' shows it")
    parser.add_argument("--cost", required=True, metavar="USD", help="what the call did cost")
    parser.add_argument("--tokens", type=int, metavar="N", help="and used, for budgets in tokens")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="how you know; is kept")
    with_config(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = load(options.config)
    try:
        cost = parse_usd(options.cost)
    except AmountError as error:
        raise AdjustError(f"--cost: {error}") from error
    if options.tokens is not None and not 0 <= options.tokens <= AMOUNT_MAX:
        raise AdjustError(f"--tokens: a number from 0 to {AMOUNT_MAX}")
    if not options.reason.strip():
        raise AdjustError("--reason: say how you know the cost; it is kept with the correction")
    adjustment = Adjustment(options.id, cost, options.tokens, options.reason)
    outcome = asyncio.run(adjust(config, adjustment))
    said = {
        "settled": "was open and is settled now",
        "late": "had been charged when its lease ran out, and is corrected now",
        "anomaly": "had been given back, and is charged now",
        "duplicate": "is settled so already: nothing was changed",
    }
    print(f"{adjustment.id} {said.get(outcome.value, outcome.value)}: {format_usd(cost)} USD")
