"""Whose a virtual key of the ledger is, without a question to the store for every call.

What is remembered here admits nobody: a reserve checks it again in the step in which it decides. So
a key that was revoked is refused by the next Check, and no call costs a round trip more.
"""

import asyncio

from extauthz.ledger import Key
from extauthz.store.base import LedgerStore

_REMEMBERED_MAX = 20_000
_QUESTIONS_MAX = 8
"""At once: those whose keys are asked about anew must not take every connection to the store."""

_STRANGERS_ASKED_MAX = 4
_STRANGERS_WAITING_MAX = 32
"""Keys that were never seen, of which somebody can make any number: they have a queue of their own,
and who does not fit is refused without a question."""


class TooManyStrangersError(Exception):
    """So many keys that were never seen are being asked about that this one is not."""


class KeyRing:
    """The keys that were seen, each with whose it was."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self._known: dict[str, Key] = {}
        self._questions = asyncio.Semaphore(_QUESTIONS_MAX)
        self._strangers = asyncio.Semaphore(_STRANGERS_ASKED_MAX)
        self._strangers_waiting = 0

    async def find(self, org: str, key_hash: str, *, anew: bool = False) -> Key | None:
        """Whose a key is, or was a while ago; None: nobody's.

        Args:
            org: whose ledger keeps it.
            key_hash: the key's SHA-256.
            anew: ask the store, because no reserve will check it.

        Raises:
            StoreError: the store does not answer, or has lost its books.
            TooManyStrangersError: it is one of a flood of keys that were never seen.
        """
        known = self._known.get(key_hash)
        if known is not None and not anew:
            return known
        found = await self._ask(org, key_hash, is_stranger=known is None)
        if found is None:
            self.forget(key_hash)
        else:
            if len(self._known) >= _REMEMBERED_MAX:
                self._known.clear()
            self._known[key_hash] = found
        return found

    async def _ask(self, org: str, key_hash: str, *, is_stranger: bool) -> Key | None:
        if not is_stranger:
            async with self._questions:
                return await self._store.key(org, key_hash)
        if self._strangers_waiting >= _STRANGERS_WAITING_MAX:
            raise TooManyStrangersError
        self._strangers_waiting += 1
        try:
            async with self._strangers:
                return await self._store.key(org, key_hash)
        finally:
            self._strangers_waiting -= 1

    def forget(self, key_hash: str) -> None:
        """Ask about it anew: the store knows something else by now."""
        self._known.pop(key_hash, None)
