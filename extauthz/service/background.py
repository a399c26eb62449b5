"""What goes on without a call: expiring leases, and giving back what nobody waits for."""

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from extauthz.ledger import Ending, Release
from extauthz.service.call_record import CallRecord
from extauthz.service.rules import Clock, Rules
from extauthz.service.settle import INAPPLICABLE, RETRYABLE
from extauthz.service.waiting import HeldRoom
from extauthz.store.base import LedgerStore

_EXPIRED_AT_ONCE = 200
_RETRY_SECONDS = 0.25
_ABANDONED_MAX = 100_000
"""Beyond it the oldest is left to its lease, which charges it: against the agent, never for it."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class AbandonQueue:
    """Releases that must not be forgotten, retried until the store has taken them."""

    store: LedgerStore
    room: HeldRoom
    clock: Clock
    _waiting: deque[Release] = field(default_factory=lambda: deque(maxlen=_ABANDONED_MAX))
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def abandon(self, command: Release) -> None:
        """Make sure, in the background, that this reservation holds nothing."""
        self._waiting.append(command)
        self._wake.set()

    @property
    def depth(self) -> int:
        """How many are still to be given back."""
        return len(self._waiting)

    async def run(self) -> None:
        """Work the queue off for ever."""
        while True:
            while self._waiting:
                if not await self._release_oldest():
                    await asyncio.sleep(_RETRY_SECONDS)
            self._wake.clear()
            await self._wake.wait()

    async def drain(self) -> None:
        """Try each of the waiting ones once more; at shutdown."""
        for _ in range(len(self._waiting)):
            if not await self._release_oldest():
                return

    async def _release_oldest(self) -> bool:
        old = self._waiting[0]
        command = replace(old, at_ms=self.clock())
        try:
            await self.store.release(command)
        except RETRYABLE:
            return False
        except INAPPLICABLE:
            log.exception("a reservation cannot be abandoned and is left to its lease")
        if self._waiting[0] is old:  # a full queue may have dropped it meanwhile
            self._waiting.popleft()
        self.room.notify(command.keys)
        return True


@dataclass(slots=True)
class ExpiryLoop:
    """Charges reservations whose lease has run out, and forgets calls nobody will tell about."""

    rules: Rules
    store: LedgerStore
    room: HeldRoom
    clock: Clock
    open_calls: dict[str, CallRecord]
    expired: Callable[[Ending], None]
    backlog: Callable[[], int]
    """how much is still to be read that may settle calls before leases charge them: entries in the
    spool, and the file access log"""
    every_seconds: float = 1.0
    backlog_seconds_max: float = 300.0
    """a backlog that does not shrink for so long no longer keeps leases from running out"""
    grace_seconds: float = 2.0
    """how long entries have, after an outage, to settle calls before their leases charge them"""

    async def run(self) -> None:
        """Look for ever; a store that is away is looked for again.

        Whatever the outage was (this process not yet running or frozen, the store away), leases ran
        on and entries piled up. They go first, or an outage would become a charge for every call.
        """
        looked = -math.inf
        while True:
            if time.monotonic() - looked > self.every_seconds + self.grace_seconds:
                await asyncio.sleep(self.grace_seconds)
            await self._wait_for_backlog()
            try:
                await self.look()
            except RETRYABLE as error:
                log.warning("leases cannot be expired now: %s", error)
            else:
                looked = time.monotonic()
            await asyncio.sleep(self.every_seconds)

    async def _wait_for_backlog(self) -> None:
        waited = 0.0
        while self.backlog() and waited < self.backlog_seconds_max:
            await asyncio.sleep(self.every_seconds)
            waited += self.every_seconds

    async def look(self) -> None:
        """Expire all that is due now."""
        policies = self.rules.policies
        for org in policies.all_orgs:
            while True:
                endings = await self.store.expire(
                    org, self.clock(), policies.settle_horizon_ms, _EXPIRED_AT_ONCE
                )
                for ending in endings:
                    self.expired(ending)
                if len(endings) < _EXPIRED_AT_ONCE:
                    break
        self._forget_calls(self.clock() - policies.stream_ms_max - policies.lease_ms)

    def _forget_calls(self, before_ms: int) -> None:
        # In order of insertion, so all that are too old stand before the first young one.
        too_old = itertools.takewhile(
            lambda call: call[1].reserved_at_ms < before_ms, self.open_calls.items()
        )
        for request_id in [request_id for request_id, _ in too_old]:
            del self.open_calls[request_id]
