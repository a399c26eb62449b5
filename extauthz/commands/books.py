"""What every command has that reads the books: filters, a time zone, and the rows in order."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from extauthz.archive import Archive
from extauthz.commands.desk import with_config
from extauthz.commands.terminal import quiet_when_unread
from extauthz.commands.times import instant_of, zone_of
from extauthz.config import Config, load
from extauthz.ledger import RowOutcome
from extauthz.server.archives import archives_of
from extauthz.server.store_url import store_url
from extauthz.service.books import all_rows
from extauthz.service.entries import Entry, EntryFilter
from extauthz.service.rules import system_clock
from extauthz.store.base import LedgerStore, StoreError, StoreUnavailableError
from extauthz.store.redis import RedisStore

_COMMAND_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Books:
    """The books of the config's org, and how to show them."""

    config: Config
    store: LedgerStore
    zone: ZoneInfo
    archive: Archive

    @property
    def org(self) -> str:
        """Whose books."""
        return self.config.defaults.org

    async def entries(self, after_seq: int = 0) -> AsyncIterator[Entry]:
        """Every entry after a number, in order: from the archive, then from the store."""
        async for row in all_rows(self.archive, self.store, self.org, after_seq):
            yield Entry.of(row)


Work = Callable[[Books, argparse.Namespace], Coroutine[None, None, None]]


def run_over_books(work: Work) -> Callable[[argparse.Namespace], None]:
    """A command's `run`: reads the config, opens the store, and closes it whatever happens."""

    def run(options: argparse.Namespace) -> None:
        config = load(options.config)
        zone = zone_of(options.timezone or config.defaults.timezone)
        store = RedisStore.from_url(store_url(config), command_timeout_s=_COMMAND_TIMEOUT_S)
        books = Books(config, store, zone, archives_of(config)(config.defaults.org))
        with quiet_when_unread():
            asyncio.run(_run(work, options, books))

    return run


async def _run(work: Work, options: argparse.Namespace, books: Books) -> None:
    try:
        await work(books, options)
    except StoreUnavailableError as error:
        raise StoreError(f"{error} (the embedded store runs with 'extauthz up')") from error
    finally:
        await books.store.close()


def with_books(parser: argparse.ArgumentParser) -> None:
    """`-c FILE` and `--timezone`, as for every command that reads the books."""
    with_config(parser)
    parser.add_argument(
        "--timezone", metavar="ZONE", help="of dates and times (default: defaults.timezone)"
    )


def with_filters(parser: argparse.ArgumentParser, *, by_call: bool = False) -> None:
    """The filters, all of which must fit; each but the times may be given several times.

    `by_call`: whether the times are those of the calls, and corrections come with their call.
    """
    for name, what in (
        ("agent", "only this agent's"),
        ("team", "only this team's"),
        ("model", "only what was asked of this model"),
        ("provider", "only this provider's"),
        ("key", "only this virtual key's, by its short name"),
    ):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="NAME", help=f"{what}; globs too"
        )
    if not by_call:
        parser.add_argument(
            "--outcome",
            action="append",
            default=[],
            choices=[outcome.value for outcome in RowOutcome],
            metavar="OUTCOME",
            help="only rows of this outcome: " + ", ".join(RowOutcome),
        )
        parser.add_argument(
            "--id", action="append", default=[], metavar="ID", help="only this call's or override's"
        )
    what = "calls made" if by_call else "rows written"
    parser.add_argument(
        "--since", metavar="TIME", help=f"only {what} since: 24h, 7d, a date or an ISO 8601 time"
    )
    parser.add_argument(
        "--until", metavar="TIME", help=f"only {what} before; a date is included itself"
    )


def filter_of(options: argparse.Namespace, zone: ZoneInfo) -> EntryFilter:
    """The filters as they were given.

    Raises:
        CommandError: a time is none.
    """
    now_ms = system_clock()
    since, until = options.since, options.until
    return EntryFilter(
        agent=tuple(options.agent),
        team=tuple(options.team),
        model=tuple(options.model),
        provider=tuple(options.provider),
        key=tuple(options.key),
        outcome=tuple(getattr(options, "outcome", ())),
        id=tuple(getattr(options, "id", ())),
        since_ms=None if since is None else instant_of("--since", since, zone, now_ms),
        until_ms=None if until is None else instant_of("--until", until, zone, now_ms),
    )
