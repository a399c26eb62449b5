"""Find again what the gRPC access log lost, in what the file log says of the same calls.

Nearly all of that is settled already. So the store is asked first how the reservations stand, which
is one read each, and only what is open goes the way of every entry, through `Settler`.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from extauthz.ids import mark_of, minted_at_ms, request_mark
from extauthz.ledger import Outcome, Release, State
from extauthz.service.completed_call import CompletedCall, Ending, ending_of
from extauthz.service.rules import Clock
from extauthz.service.settle import INAPPLICABLE, RETRYABLE, Settlement, SettlementObserver, Settler
from extauthz.store.base import StoredReservation, StoreUnavailableError

log = logging.getLogger(__name__)

_MARGIN_MS = 2_000
"""A Check reserves while Envoy waits for it, or, when it is cancelled, soon after."""


@dataclass(frozen=True, slots=True)
class UnansweredCheck:
    """A call that never left, and to whose Check Envoy had no answer: nobody, or a late one."""

    request_id: str
    started_at_ms: int
    ended_at_ms: int


@dataclass(slots=True)
class Reconciled:
    """What became of some entries."""

    known: int = 0
    """had ended already, or are still open"""
    too_old: int = 0
    """unknown to the store, and older than it can remember"""
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """what was settled now, and what it was answered"""

    @property
    def settled(self) -> int:
        """How many calls have ended by this."""
        return sum(self.outcomes.values()) - self.outcomes[Outcome.DUPLICATE]

    def add(self, other: "Reconciled") -> None:
        """Count these too."""
        self.known += other.known
        self.too_old += other.too_old
        self.outcomes += other.outcomes


class Reconciler:
    """Settles what has not been settled."""

    def __init__(self, settler: Settler, clock: Clock) -> None:
        self._counting = _Counting(settler.observer)
        self._settler = replace(settler, observer=self._counting)
        self._store = settler.store
        self._rules = settler.rules
        self._clock = clock

    async def reconcile(
        self, calls: Iterable[CompletedCall], unanswered: Sequence[UnansweredCheck] = ()
    ) -> Reconciled:
        """Settle what is open of these. Again, it changes nothing more.

        Raises:
            StoreError: the store has not taken it all: call again.
        """
        result = Reconciled()
        by_org: dict[str, dict[str, CompletedCall]] = defaultdict(dict)
        for call in calls:
            of_org, id_ = by_org[call.record.org], call.record.reservation_id
            if id_ not in of_org or of_org[id_].periodic:
                of_org[id_] = call
        for org, of_org in by_org.items():
            stored = await self._store.reservations(org, list(of_org))
            wanted: list[CompletedCall] = []
            for id_, call in of_org.items():
                self._sort(call, stored.get(id_), wanted, result)
            await self._settle(wanted, result)
        if unanswered:
            await self._release(unanswered, result)
        return result

    async def settled(self, reservations: Iterable[tuple[str, str]]) -> set[str]:
        """The ids of those, each with its org, that are settled: nothing can change them."""
        by_org: dict[str, list[str]] = defaultdict(list)
        for org, id_ in reservations:
            by_org[org].append(id_)
        return {
            id_
            for org, ids in by_org.items()
            for id_, stored in (await self._store.reservations(org, ids)).items()
            if stored.state is State.SETTLED
        }

    def _sort(
        self,
        call: CompletedCall,
        stored: StoredReservation | None,
        wanted: list[CompletedCall],
        result: Reconciled,
    ) -> None:
        policies, now_ms = self._rules.policies, self._clock()
        unbilled = self._rules.unbilled_status(call.record.provider, call.captured)
        ending = ending_of(call, unbilled)
        if stored is None and ending is Ending.CHARGE:
            # Lost by the store: recovered from the record, as long as its ending would be known.
            if now_ms - call.record.reserved_at_ms > call.record.settle_horizon_ms:
                result.too_old += 1
            else:
                wanted.append(call)
            return
        state = stored.state if stored else State.SETTLED
        is_open = {
            # An old sign of life is none.
            Ending.RENEW: state is State.HELD and now_ms - call.ended_at_ms < policies.lease_ms,
            Ending.RELEASE: state in (State.HELD, State.EXPIRED),
            Ending.CHARGE: state is not State.SETTLED,
        }[ending]
        if is_open:
            wanted.append(call)
        if not is_open or ending is Ending.RENEW:
            result.known += 1

    async def _settle(self, wanted: list[CompletedCall], result: Reconciled) -> None:
        if not wanted:
            return
        left = await self._settler.settle(wanted)
        if left:
            raise StoreUnavailableError(f"the store has not taken {len(left)} settlements")
        result.outcomes += self._counting.take()

    async def _release(self, unanswered: Sequence[UnansweredCheck], result: Reconciled) -> None:
        """Give back what a Check has reserved whose answer Envoy never had.

        The reservation's id says for which request it was minted, and when.
        """
        policies = self._rules.policies
        checks: dict[int | None, UnansweredCheck] = {
            request_mark(check.request_id): check for check in unanswered
        }
        for org in policies.all_orgs:
            found = [
                id_
                for id_ in await self._still_charged(org)
                if (check := checks.get(mark_of(id_))) and _is_of_its_time(id_, check)
            ]
            for id_, stored in (await self._store.reservations(org, found)).items():
                command = Release(
                    id_,
                    org,
                    self._clock(),
                    policies.settle_horizon_ms,
                    stored.keys,
                    abandoned=True,
                )
                try:
                    ending = await self._store.release(command)
                except INAPPLICABLE:  # it has ended meanwhile
                    continue
                except RETRYABLE as error:
                    raise StoreUnavailableError(f"a release was not taken: {error}") from error
                log.info("%s was reserved for a call that never left: given back", id_)
                self._settler.room.notify(stored.keys)
                result.outcomes[ending.outcome] += 1

    async def _still_charged(self, org: str) -> list[str]:
        """What is held, or was charged because its lease ran out before this was read."""
        return [*await self._store.open_ids(org), *await self._store.unconfirmed_ids(org)]


def _is_of_its_time(id_: str, check: UnansweredCheck) -> bool:
    earliest_ms, latest_ms = check.started_at_ms - _MARGIN_MS, check.ended_at_ms + _MARGIN_MS
    return earliest_ms <= minted_at_ms(id_) <= latest_ms


@dataclass(slots=True)
class _Counting:
    """Counts outcomes on their way."""

    inner: SettlementObserver
    outcomes: Counter[Outcome] = field(default_factory=Counter)

    def settled(self, settlement: Settlement) -> None:
        self.outcomes[settlement.outcome] += 1
        self.inner.settled(settlement)

    def take(self) -> Counter[Outcome]:
        outcomes, self.outcomes = self.outcomes, Counter()
        return outcomes
