"""Settles by hand what Envoy's file access log tells of, while the service runs or not."""

from pathlib import Path

from extauthz.config import Config, policies_of, prices_of
from extauthz.errors import OperatorError
from extauthz.server.data_dir import DataDir
from extauthz.server.serve import store_url
from extauthz.service.reconcile import Reconciled, Reconciler
from extauthz.service.rules import Rules, system_clock
from extauthz.service.settle import Settlement, Settler
from extauthz.service.waiting import HeldRoom
from extauthz.servicers.file_log import read_lines
from extauthz.servicers.log_files import LogFiles
from extauthz.store.redis import RedisStore


class ReconcileError(OperatorError):
    """The log cannot be read; the text says why."""


async def reconcile_files(config: Config, log: Path | None) -> tuple[Reconciled, int]:
    """Go through a whole log, and count the lines that cannot be read.

    Raises:
        ReconcileError: the log cannot be read.
        StoreError: the store is away; what was settled before that stays so.
    """
    path = log or DataDir(config.data_dir).access_log
    files = LogFiles(path, with_rotated=log is None, quiet_seconds=0)
    store = RedisStore.from_url(store_url(config))
    rules = Rules(policies_of(config), prices_of(config))
    settler = Settler(rules, store, HeldRoom(), system_clock, _Silent())
    reconciler, result, unreadable = Reconciler(settler, system_clock), Reconciled(), 0
    try:
        sizes, place = files.sizes(), files.start()
        if place is None:
            raise ReconcileError(f"{path}: there is no such log: name another with --log")
        while found := files.read(place, sizes):
            lines, place = found
            read = read_lines(lines)
            result.add(await reconciler.reconcile(read.calls, read.unanswered))
            unreadable += read.unreadable
    except OSError as error:
        raise ReconcileError(f"{path}: cannot be read ({error.strerror})") from error
    finally:
        await store.close()
    return result, unreadable


class _Silent:
    """The counts say it all."""

    def settled(self, settlement: Settlement) -> None:
        pass
