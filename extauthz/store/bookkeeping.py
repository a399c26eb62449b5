"""What an audit and a rebuild do to a store: look at one instant, repair, put back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from extauthz.ledger import Overrides, RowOutcome
from extauthz.store import script
from extauthz.store.base import BooksClosedError, StoreError, check_keys, org_prefix
from extauthz.store.codec import (
    OPENING_ID,
    archive_key,
    checked,
    open_call,
    override_id_key,
    overrides_key,
    own_keys,
    pairs,
    record_key,
)
from extauthz.store.courier import Courier
from extauthz.store.override_fields import fields_of
from extauthz.store.script import Call

_SCANNED_AT_ONCE = 1000

Fields = Mapping[str, int]
"""A counter as it stands: `spent` or numbered buckets, and `held`."""


@dataclass(frozen=True, slots=True)
class Cut:
    """An org at one instant.

    Attributes:
        last_seq: the number of its last row.
        open_ids: the reservations that hold anything.
        counters: those that were asked for, in that order; empty where there is none.
    """

    last_seq: int
    open_ids: tuple[str, ...]
    counters: tuple[Fields, ...]


@dataclass(frozen=True, slots=True)
class Correction:
    """One field of a counter: what it showed (None: it was not there), what it must show."""

    field: str
    shown: int | None
    due: int


class BooksOpenError(StoreError):
    """Somebody works with the books that were to be put back; nothing was changed."""


class Bookkeeping:
    """The books of a Redis or Valkey store; each method is one atomic step."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier

    async def counter_keys(self, org: str) -> list[str]:
        """The keys of all counters of an org, which may come and go meanwhile."""
        found: set[str] = set()
        cursor = "0"
        while True:
            words = ("MATCH", f"{org_prefix(org)}c:*", "COUNT", str(_SCANNED_AT_ONCE))
            ((cursor, keys),) = await self._courier.read(org, ("SCAN", cursor, *words))
            found.update(keys)
            if str(cursor) == "0":
                return sorted(found)

    async def cut(self, org: str, keys: Sequence[str]) -> Cut:
        """How counters, open reservations and rows stand at one instant.

        Raises:
            BooksClosedError: there are no books.
            StoreError: the store does not answer.
        """
        check_keys(org, keys)
        words = (*own_keys(org, "cut"), *keys)
        _, _, last_seq, open_ids, *found = await self._run(Call(script.CUT, org, words, ("cut",)))
        counters = tuple(
            {field: int(amount) for field, amount in pairs(flat).items()} for flat in found
        )
        return Cut(int(last_seq), tuple(open_ids), counters)

    async def counters(self, org: str, keys: Sequence[str]) -> list[Fields]:
        """How counters stand, one after the other; empty where there is none."""
        check_keys(org, keys)
        found: list[Fields] = []
        for at in range(0, len(keys), _SCANNED_AT_ONCE):
            chunk = keys[at : at + _SCANNED_AT_ONCE]
            replies = await self._courier.read(org, *(("HGETALL", key) for key in chunk))
            found += [{name: int(n) for name, n in pairs(flat).items()} for flat in replies]
        return found

    async def forget_times(self, org: str, keys: Sequence[str]) -> list[int]:
        """When each counter may be forgotten; 0 for one that is not there."""
        check_keys(org, keys)
        ends: list[int] = []
        for at in range(0, len(keys), _SCANNED_AT_ONCE):
            chunk = keys[at : at + _SCANNED_AT_ONCE]
            replies = await self._courier.read(org, *(("PEXPIRETIME", key) for key in chunk))
            ends += [max(0, int(reply)) for reply in replies]
        return ends

    async def repair(
        self,
        org: str,
        key: str,
        corrections: Sequence[Correction],
        *,
        id_: str,
        at_ms: int,
        seen_seq: int,
        forget_at_ms: int,
        particulars: str,
    ) -> bool:
        """Set a counter, with a row; False if anything has moved on it after the row `seen_seq`.

        `forget_at_ms` is for a counter that is gone; one that is there keeps its own.

        Raises:
            StoreError: nothing was changed.
        """
        check_keys(org, [key])
        args = [id_, str(at_ms), str(forget_at_ms), particulars, str(seen_seq)]
        for one in corrections:
            shown = "" if one.shown is None else str(one.shown)
            args += [one.field, shown, str(one.due)]
        call = Call(script.REPAIR, org, (*own_keys(org, id_), key), tuple(args))
        return (await self._run(call))[1] == "repaired"

    async def close(self, org: str, last_read: int) -> bool:
        """Close the books; False if a row was written after `last_read`, even if it is archived."""
        call = Call(script.CLOSE, org, own_keys(org, OPENING_ID)[:3], (OPENING_ID, str(last_read)))
        return (await self._run(call))[1] == "closed"

    async def restore_counter(self, org: str, key: str, fields: Fields, forget_at_ms: int) -> None:
        """Put a counter back.

        Raises:
            BooksOpenError: the books are open.
        """
        check_keys(org, [key])
        words = [str(word) for pair in fields.items() for word in pair]
        await self._restore(org, key, words, forget_at_ms)

    async def restore_ended(
        self, org: str, id_: str, fields: Mapping[str, str], forget_at_ms: int, *, expired: bool
    ) -> None:
        """Put back what is remembered of an ended reservation, as `prelude.lua` describes it.

        Raises:
            BooksOpenError: the books are open.
        """
        words = [word for pair in fields.items() for word in pair]
        key = record_key(org, id_)
        await self._restore(org, key, words, forget_at_ms, ended=id_, unconfirmed=expired)

    async def restore_overrides(self, org: str, overrides: Overrides) -> None:
        """Put back what operators have changed, instead of what there is.

        Raises:
            BooksOpenError: the books are open.
        """
        words = [word for pair in fields_of(overrides).items() for word in pair]
        await self._restore(org, overrides_key(org), words, None)

    async def restore_override_id(
        self, org: str, id_: str, content: str, forget_at_ms: int
    ) -> None:
        """Put back what an override has said, so that a repeat of it changes nothing.

        Raises:
            BooksOpenError: the books are open.
        """
        await self._restore(org, override_id_key(org, id_), [content], forget_at_ms)

    async def restore_archived(self, org: str, through_seq: int, hash_: str) -> None:
        """Put back up to which row the books are archived, and what proves it.

        Raises:
            BooksOpenError: the books are open.
        """
        words = ["through", str(through_seq), "hash", hash_]
        await self._restore(org, archive_key(org), words, None)

    async def open(self, org: str, at_ms: int, first_seq: int, particulars: str) -> None:
        """Open the books again, going on after the rows that are in the archive."""
        await self._run(open_call(org, at_ms, first_seq, RowOutcome.REPAIR, particulars))

    async def are_open(self, org: str) -> bool:
        """Whether the store has the books at all."""
        try:
            await self.cut(org, ())
        except BooksClosedError:
            return False
        return True

    async def _restore(
        self,
        org: str,
        key: str,
        words: list[str],
        forget_at_ms: int | None,
        *,
        ended: str = "",
        unconfirmed: bool = False,
    ) -> None:
        until = "" if forget_at_ms is None else str(forget_at_ms)
        args = (OPENING_ID, until, ended, str(int(unconfirmed)), *words)
        call = Call(script.RESTORE, org, (*own_keys(org, OPENING_ID), key), args)
        if (await self._run(call))[1] == "books_open":
            raise BooksOpenError(
                f"the books of the org '{org}' were opened by somebody else meanwhile: stop the "
                "services on this store, and start again"
            )

    async def _run(self, call: Call) -> list[str]:
        (answer,) = await self._courier.run([call])
        reply = checked(call.org, answer)
        if isinstance(reply, Exception):
            raise reply
        return reply
