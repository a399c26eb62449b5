"""`extauthz ledger tail | export`: the rows of the books as they are, for people and machines."""

import argparse
import asyncio
import csv
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from extauthz.archive import ArchiveError
from extauthz.commands.books import Books, filter_of, run_over_books, with_books, with_filters
from extauthz.commands.desk import CommandError
from extauthz.commands.row_formats import COLUMNS, HEADER, csv_cells, json_of, line_of
from extauthz.service.entries import Entry, EntryFilter
from extauthz.store.base import StoreUnavailableError

_POLL_S = 0.5


def add_to(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`ledger tail` and `ledger export`."""
    tail = kinds.add_parser("tail", help="show the last rows of the books, and those to come")
    tail.add_argument(
        "-n", dest="count", type=_count, default=20, metavar="N", help="how many (default: 20)"
    )
    tail.add_argument(
        "-f", "--follow", action="store_true", help="go on with new rows as they come"
    )
    tail.add_argument("--json", action="store_true", help="one JSON object a line, for machines")
    with_filters(tail)
    with_books(tail)
    tail.set_defaults(run=run_over_books(_tail))

    export = kinds.add_parser("export", help="write the rows of the books as JSON lines or CSV")
    export.add_argument("--format", choices=["jsonl", "csv"], required=True, help="of the output")
    export.add_argument(
        "--output", type=Path, metavar="FILE", help="written whole or not at all (default: stdout)"
    )
    with_filters(export)
    with_books(export)
    export.set_defaults(run=run_over_books(_export))


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number, such as 20")
    return int(text)


async def _tail(books: Books, options: argparse.Namespace) -> None:
    wanted = filter_of(options, books.zone)

    def show(entry: Entry) -> None:
        text = json_of(entry, books.org) if options.json else line_of(entry, books.zone)
        print(text, flush=options.follow)

    last_seq, found = await _last(books, wanted, options.count)
    if not options.json:
        print(f"{HEADER}  id, in {books.zone.key} time", flush=options.follow)
    for entry in found:
        show(entry)
    if options.follow:
        await _follow(books, wanted, last_seq, show)


async def _last(books: Books, wanted: EntryFilter, count: int) -> tuple[int, list[Entry]]:
    """The last entries that are wanted, and the number of the last row of all.

    From ever further back, as nobody knows how many rows lie between those that are wanted.
    """
    last_seq = (await books.store.standing(books.org)).last_seq
    span = max(count, 1)
    while True:
        after_seq = max(0, last_seq - span)
        found: deque[Entry] = deque(maxlen=count)
        seen_seq = after_seq
        async for entry in books.entries(after_seq):
            seen_seq = entry.row.seq
            if wanted.wants(entry, entry.row.at_ms):
                found.append(entry)
        if len(found) == count or not after_seq:
            return seen_seq, list(found)
        span *= 8


async def _follow(
    books: Books, wanted: EntryFilter, last_seq: int, show: Callable[[Entry], None]
) -> None:
    """Show rows as they come, until somebody stops it; a store that is away is waited for."""
    is_away = False
    while True:
        try:
            async for entry in books.entries(last_seq):
                last_seq = entry.row.seq
                if wanted.wants(entry, entry.row.at_ms):
                    show(entry)
            if is_away:
                print("extauthz: the store answers again", file=sys.stderr)
            is_away = False
        except StoreUnavailableError as error:
            if not is_away:
                print(f"extauthz: {error}: waiting for it", file=sys.stderr)
            is_away = True
        except ArchiveError as error:
            print(f"extauthz: {error}", file=sys.stderr)
            last_seq = (await books.store.standing(books.org)).through_seq
        await asyncio.sleep(_POLL_S)


async def _export(books: Books, options: argparse.Namespace) -> None:
    wanted = filter_of(options, books.zone)
    if options.output is None:
        await _write(books, wanted, options.format, sys.stdout)
        return
    path: Path = options.output
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("x", newline="", encoding="utf-8") as file:
            await _write(books, wanted, options.format, file)
        partial.replace(path)
    except OSError as error:
        raise CommandError(f"--output {path}: cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


async def _write(books: Books, wanted: EntryFilter, kind: str, file: TextIO) -> None:
    table = csv.writer(file, lineterminator="\n")
    if kind == "csv":
        table.writerow(COLUMNS)
    async for entry in books.entries():
        if not wanted.wants(entry, entry.row.at_ms):
            continue
        if kind == "csv":
            table.writerow(csv_cells(entry, books.org))
        else:
            print(json_of(entry, books.org), file=file)
