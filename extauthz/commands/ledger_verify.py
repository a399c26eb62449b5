"""`extauthz ledger verify`: proves that the archived books are what was written."""

import argparse
import asyncio
import json
import sys
from typing import Any

from extauthz.commands.desk import with_config
from extauthz.config import load
from extauthz.money import format_usd
from extauthz.server.verify_books import OrgVerified, verify_books


def add_to(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `ledger`."""
    verify = kinds.add_parser(
        "verify", help="find any row that was changed, removed, added or moved since it was written"
    )
    with_config(verify)
    verify.add_argument("--org", metavar="ORG", help="only the books of this org")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = load(options.config)
    verified = asyncio.run(verify_books(config, options.org))
    if options.json:
        print(json.dumps({"orgs": [_as_json(one) for one in verified]}, indent=2))
    else:
        for one in verified:
            _print(one)
    if any(one.findings for one in verified):
        sys.exit(1)


def _print(one: "OrgVerified") -> None:
    found = one.verification
    key = "with a key" if one.is_keyed else "without a key"
    print(
        f"{one.org}: {found.rows} rows in {found.segments} segments, chained {key}, in {one.place}"
    )
    for finding in one.findings:
        print(f"  {finding}")
    if found.has_more:
        print("  and more, which are not listed")
    if one.store_says is not None:
        print(f"  not compared with the store: {one.store_says}")
    if not one.findings:
        where = "" if one.store_says is not None else ", and the store agrees"
        total = format_usd(found.change_nanousd)
        print(f"  all as it was written{where}; {total} USD up to row {found.last_seq}")


def _as_json(one: "OrgVerified") -> dict[str, Any]:
    found = one.verification
    return {
        "org": one.org,
        "archive": one.place,
        "is_good": not one.findings,
        "is_keyed": one.is_keyed,
        "rows": found.rows,
        "segments": found.segments,
        "last_seq": found.last_seq,
        "last_hash": found.head.hash.hex() if found.head else None,
        "cost_nanousd": str(found.change_nanousd),
        "findings": [
            {"file": f.file, "line": f.line, "seq": f.seq, "what": f.what} for f in one.findings
        ],
        "has_more_findings": found.has_more,
        "is_compared_with_store": one.store_says is None,
        "store_error": one.store_says,
    }
