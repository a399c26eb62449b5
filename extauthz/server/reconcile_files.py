"""Settles by hand what Envoy's file access log tells of, while the service runs or not."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from extauthz.config import Config, policies_of, prices_of
from extauthz.errors import OperatorError
from extauthz.ledger import Outcome
from extauthz.server.archives import archives_of, expect_books
from extauthz.server.data_dir import DataDir
from extauthz.server.in_force import as_recorded
from extauthz.server.store_url import store_url
from extauthz.service.reconcile import Reconciled, Reconciler
from extauthz.service.rules import Rules, system_clock
from extauthz.service.settle import Settlement, Settler
from extauthz.service.waiting import HeldRoom
from extauthz.servicers.file_log import read_lines
from extauthz.servicers.log_files import LogFiles, Place
from extauthz.store.base import StoreError
from extauthz.store.redis import RedisStore


class ReconcileError(OperatorError):
    """The log cannot be read; the text says why."""


@dataclass(slots=True)
class LinesReconciled:
    """What became of a log's lines."""

    result: Reconciled = field(default_factory=Reconciled)
    unreadable: int = 0
    failures: list[str] = field(default_factory=list)
    """`file, byte 123: why`, for each line that cannot be read or settled"""


async def reconcile_files(config: Config, only: Path | None) -> LinesReconciled:
    """Go through a whole log; a line that cannot be settled keeps no other from it.

    Raises:
        ReconcileError: the log cannot be read.
        StoreError: the store is away; what was settled before that stays so.
    """
    path = only or DataDir(config.data_dir).access_log
    files = LogFiles(path, with_rotated=only is None, quiet_seconds=0)
    store = RedisStore.from_url(store_url(config))
    policies = as_recorded(DataDir(config.data_dir).in_force, policies_of(config))
    expect_books(store, config, archives_of(config), policies.all_orgs)
    rules = Rules(policies, prices_of(config))
    inapplicable = _Inapplicable()
    settler = Settler(rules, store, HeldRoom(), system_clock, inapplicable)
    reconciler, done = Reconciler(settler, system_clock), LinesReconciled()
    try:
        sizes, place = files.sizes(), files.start()
        if place is None:
            raise ReconcileError(f"{path}: there is no such log: name another with --log")
        while found := files.read(place, sizes):
            lines, place = found
            name = next(file.path for file in files.found() if file.inode == place.inode)
            for where, line in _placed(lines, name, place):
                if why := await _reconcile(reconciler, line, inapplicable, done):
                    done.failures.append(f"{where}: {why}")
    except OSError as error:
        raise ReconcileError(f"{path}: cannot be read ({error.strerror})") from error
    finally:
        await store.close()
    return done


def _placed(lines: list[bytes], path: Path, end: Place) -> Iterator[tuple[str, bytes]]:
    """Each line with where it begins, told from where the last one ends."""
    offset = end.offset - sum(len(line) + 1 for line in lines)
    for line in lines:
        yield f"{path}, byte {offset}", line
        offset += len(line) + 1


async def _reconcile(
    reconciler: Reconciler, line: bytes, inapplicable: "_Inapplicable", done: LinesReconciled
) -> str | None:
    """Settle one line; why not, if that cannot be."""
    read = read_lines([line])
    done.unreadable += read.unreadable
    try:
        done.result.add(await reconciler.reconcile(read.calls, read.unanswered))
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this line's alone
        return f"cannot be settled ({type(error).__name__}: {error})"
    if id_ := inapplicable.take():
        return f"{id_}: the ledger cannot apply it (its holds or its window are others, or gone)"
    return "cannot be read" if read.unreadable else None


class _Inapplicable:
    """Remembers which settlement the ledger could not apply."""

    def __init__(self) -> None:
        self._id: str | None = None

    def settled(self, settlement: Settlement) -> None:
        if settlement.outcome is Outcome.DEAD_LETTER:
            self._id = settlement.call.record.reservation_id

    def take(self) -> str | None:
        """The last one's id, once."""
        id_, self._id = self._id, None
        return id_
