"""Whose a virtual key of the ledger is, without a question to the store for every call.

What is remembered here admits nobody: a reserve checks it again in the step in which it decides. So
a key that was revoked is refused by the next Check, and no call costs a round trip more.
"""

import asyncio

from extauthz.ledger import Key
from extauthz.store.base import LedgerStore

_REMEMBERED_MAX = 20_000
_QUESTIONS_MAX = 8
"""At once: somebody who tries keys must not take every connection to the store."""


class KeyRing:
    """The keys that were seen, each with whose it was."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self._known: dict[str, Key] = {}
        self._questions = asyncio.Semaphore(_QUESTIONS_MAX)

    async def find(self, org: str, key_hash: str, *, anew: bool = False) -> Key | None:
        """Whose a key is, or was a while ago; None: nobody's.

        Args:
            org: whose ledger keeps it.
            key_hash: the key's SHA-256.
            anew: ask the store, because no reserve will check it.

        Raises:
            StoreError: the store does not answer, or has lost its books.
        """
        known = self._known.get(key_hash)
        if known is not None and not anew:
            return known
        async with self._questions:
            found = await self._store.key(org, key_hash)
        if found is None:
            self.forget(key_hash)
        else:
            if len(self._known) >= _REMEMBERED_MAX:
                self._known.clear()
            self._known[key_hash] = found
        return found

    def forget(self, key_hash: str) -> None:
        """Ask about it anew: the store knows something else by now."""
        self._known.pop(key_hash, None)
