"""`extauthz reconcile`: settle by hand what Envoy's file access log tells of."""

import argparse
import asyncio
import sys
from pathlib import Path

from extauthz.config import load
from extauthz.ledger import Outcome
from extauthz.server.reconcile_files import reconcile_files

_CORRECTED = (Outcome.LATE, Outcome.ANOMALY)
_ALARMING = (Outcome.CONFLICT, Outcome.DEAD_LETTER)


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "reconcile", help="settle what Envoy's file access log tells of, and is not settled yet"
    )
    parser.add_argument("-c", "--config", type=Path, default=Path("extauthz.yaml"), metavar="FILE")
    parser.add_argument(
        "--log", type=Path, metavar="LOG", help="only this file (default: all in data_dir)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = load(options.config)
    done = asyncio.run(reconcile_files(config, options.log))
    result = done.result
    corrected = sum(result.outcomes[outcome] for outcome in _CORRECTED)
    alarming = sum(result.outcomes[outcome] for outcome in _ALARMING)
    print(
        f"settled now: {result.settled - corrected - alarming}\n"
        f"corrected, as a lease had charged them or they had been given back: {corrected}\n"
        f"already known: {result.known + result.outcomes[Outcome.DUPLICATE]}\n"
        f"contradicted by the ledger, or not applicable: {alarming}\n"
        f"too old: {result.too_old}\n"
        f"unreadable lines: {done.unreadable}"
    )
    for failure in done.failures:
        print(failure, file=sys.stderr)
    if done.failures:
        sys.exit(1)
