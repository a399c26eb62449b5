"""Commands as script calls, and replies as answers: what crosses the wire, and nothing else."""

from collections.abc import Iterator, Sequence

from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
    Balance,
    CapRange,
    ClockSkewError,
    CounterRangeError,
    Ending,
    HoldsMismatchError,
    Outcome,
    Override,
    Release,
    Renew,
    Reserve,
    RowOutcome,
    Seal,
    Settle,
    Standing,
    State,
)
from extauthz.store import script
from extauthz.store.base import (
    BooksClosedError,
    StoredReservation,
    StoreUnavailableError,
    check_keys,
    org_prefix,
)
from extauthz.store.override_fields import field_of, key_field
from extauthz.store.script import Call, Wait

OPENING_ID = "books"
"""What the first row of an org's books is called by."""

SKEW = (
    f"the caller's clock and the store's are more than {CLOCK_SKEW_MS_MAX} ms apart, "
    "or the command was that long on its way"
)


_WRITTEN = frozenset({"reserved", "applied", "duplicate"})
"""Answers of scripts that wait for replicas and have written; a repeated override writes again."""


def record_key(org: str, id_: str) -> str:
    """Where a reservation stands."""
    return f"{org_prefix(org)}r:{id_}"


def leases_key(org: str) -> str:
    """Where an org's leases stand."""
    return f"{org_prefix(org)}leases"


def overrides_key(org: str) -> str:
    """Where an org's overrides stand."""
    return f"{org_prefix(org)}overrides"


def override_id_key(org: str, id_: str) -> str:
    """Where it stands what an override has said."""
    return f"{org_prefix(org)}o:{id_}"


def rows_key(org: str) -> str:
    """Where an org's books stand."""
    return f"{org_prefix(org)}rows"


def archive_key(org: str) -> str:
    """Where it stands how far an org's rows are archived, and who does it (scripts/claim.lua)."""
    return f"{org_prefix(org)}archive"


def unconfirmed_key(org: str) -> str:
    """Where those stand whose lease has run out."""
    return f"{org_prefix(org)}unconfirmed"


def own_keys(org: str, id_: str) -> tuple[str, str, str, str]:
    """The first KEYS of every script that ends a reservation; its counters follow."""
    return record_key(org, id_), leases_key(org), rows_key(org), unconfirmed_key(org)


def end_args(id_: str, at_ms: int, settle_horizon_ms: int) -> tuple[str, str, str]:
    """The first three ARGV of a script that ends a reservation."""
    return id_, str(at_ms), str(at_ms + settle_horizon_ms)


def reserve_call(command: Reserve, wait: Wait | None) -> Call:
    """See `scripts/reserve.lua`."""
    check_keys(command.org, [hold.key for hold in command.holds])
    times = (str(command.at_ms), str(command.lease_until_ms))
    args = [command.id, *times, " ".join(command.pausable_as)]
    args += [str(command.estimate_nanousd), command.particulars, str(command.remember_until_ms)]
    args.append(key_field(command.key_hash) if command.key_hash else "")
    for hold in command.holds:
        enforcing, transient = str(int(hold.enforcing)), str(int(hold.transient))
        args += [str(hold.amount), str(hold.limit), enforcing, str(hold.forget_at_ms), transient]
        args.append(hold.budget_id or "")
    if command.cap_range is not None:
        args += _cap_args(command, command.cap_range)
    record, leases, rows, _ = own_keys(command.org, command.id)
    own = (record, leases, rows, overrides_key(command.org))
    keys = (*own, *(hold.key for hold in command.holds))
    return Call(script.RESERVE, command.org, keys, tuple(args), wait)


def _cap_args(command: Reserve, cap_range: CapRange) -> Iterator[str]:
    """What `scripts/reserve.lua` is told behind the counters of a call that may be capped."""
    words = (cap_range.most, cap_range.least, cap_range.comfort, cap_range.share_permille)
    yield from map(str, (*words, *cap_range.cost, cap_range.written_max))
    for hold in command.holds:
        yield "" if hold.least is None else str(hold.least)
        yield from map(str, hold.slope or (hold.amount, 0))


def check_replicas(wanted: int, id_: str, status: str, acknowledged: int) -> None:
    """A reservation or an override that its replicas may not have is as if there were no answer.

    Raises:
        StoreUnavailableError: release the reservation, or repeat the override.
    """
    if status == "held_already":
        # WAIT looks no further back than to what its own connection wrote.
        raise StoreUnavailableError(f"{id_}: that replicas have a repeated reserve is not known")
    if status in _WRITTEN and acknowledged < wanted:
        raise StoreUnavailableError(
            f"{id_}: {acknowledged} of {wanted} replicas (store.wait_replicas) have it in time"
        )


def settle_call(command: Settle) -> Call:
    """See `scripts/settle.lua`."""
    check_keys(command.org, [charge.key for charge in command.charges])
    is_young = command.at_ms - command.reserved_at_ms <= command.settle_horizon_ms
    args = [*end_args(command.id, command.at_ms, command.settle_horizon_ms), str(int(is_young))]
    args += [str(command.cost_nanousd), command.particulars]
    for charge in command.charges:
        args += [str(charge.cost), str(charge.forget_at_ms)]
    keys = (*own_keys(command.org, command.id), *(charge.key for charge in command.charges))
    return Call(script.SETTLE, command.org, keys, tuple(args))


def release_call(command: Release) -> Call:
    """See `scripts/release.lua`."""
    check_keys(command.org, command.keys)
    outcome = RowOutcome.ABANDONED if command.abandoned else RowOutcome.RELEASED
    return Call(
        script.RELEASE,
        command.org,
        (*own_keys(command.org, command.id), *command.keys),
        (
            *end_args(command.id, command.at_ms, command.settle_horizon_ms),
            outcome.value,
            command.particulars,
        ),
    )


def renew_call(command: Renew) -> Call:
    """See `scripts/renew.lua`."""
    words = (command.at_ms, command.lease_until_ms, command.observed_nanousd, *command.observed)
    keys = (record_key(command.org, command.id), leases_key(command.org))
    return Call(script.RENEW, command.org, keys, (command.id, *map(str, words)))


def expire_call(
    org: str, id_: str, keys: Sequence[str], at_ms: int, settle_horizon_ms: int
) -> Call:
    """See `scripts/expire.lua`."""
    args = end_args(id_, at_ms, settle_horizon_ms)
    return Call(script.EXPIRE, org, (*own_keys(org, id_), *keys), args)


def override_call(command: Override, wait: Wait | None) -> Call:
    """See `scripts/override.lua`."""
    own_id = override_id_key(command.org, command.id)
    return Call(
        script.OVERRIDE,
        command.org,
        (own_id, overrides_key(command.org), rows_key(command.org)),
        (
            command.id,
            str(command.at_ms),
            str(command.forget_at_ms),
            command.content,
            command.change.value,
            field_of(command),
            str(command.amount),
            "" if command.until_ms is None else str(command.until_ms),
            command.particulars,
            command.target,
        ),
        wait,
    )


def open_call(
    org: str,
    at_ms: int,
    first_seq: int = 1,
    outcome: RowOutcome = RowOutcome.OPENED,
    particulars: str = "",
) -> Call:
    """See `scripts/open.lua`."""
    args = (OPENING_ID, str(at_ms), str(first_seq), outcome.value, particulars)
    keys = (archive_key(org), *own_keys(org, OPENING_ID)[1:])
    return Call(script.OPEN, org, keys, args)


def claim_call(org: str, id_: str, holder: str, at_ms: int, until_ms: int) -> Call:
    """See `scripts/claim.lua`."""
    keys = (archive_key(org), leases_key(org), rows_key(org))
    return Call(script.CLAIM, org, keys, (id_, str(at_ms), holder, str(until_ms)))


def seal_call(command: Seal, id_: str) -> Call:
    """See `scripts/seal.lua`."""
    org = command.org
    keys = (archive_key(org), leases_key(org), rows_key(org))
    words = (command.at_ms, command.holder, command.until_ms, command.before_seq)
    args = (id_, *map(str, words), str(command.through_seq), command.hash)
    return Call(script.SEAL, org, keys, args)


def behind_call(org: str, id_: str, at_ms: int, archived_seq: int, why: str | None) -> Call:
    """See `scripts/behind.lua`."""
    args = (id_, str(at_ms), str(archived_seq), why or "")
    return Call(script.BEHIND, org, (archive_key(org),), args)


def claimed(reply: Sequence[str]) -> Standing:
    """The answer of `scripts/claim.lua`."""
    _, _, holder, until_ms, through, hash_, last, behind, archived = reply
    fields = {"holder": holder, "until": until_ms, "through": through, "hash": hash_}
    return standing_in({**fields, "behind": behind, "archived": archived}, int(last))


def standing_in(fields: dict[str, str], last_seq: int) -> Standing:
    """The hash that `scripts/claim.lua` describes."""
    return Standing(
        last_seq,
        int(fields.get("through", 0)),
        fields.get("hash", ""),
        fields.get("holder", ""),
        int(fields.get("until", 0)),
        fields.get("behind", ""),
        int(fields.get("archived", 0)),
    )


def stored(record: Sequence[str]) -> StoredReservation:
    """A record's fields as a reservation."""
    fields, keys = pairs(record), counters(record)
    return StoredReservation(
        State(fields["state"]),
        tuple((key, int(fields[f"f{n}"])) for n, key in enumerate(keys, 1)),
        tuple(map(int, fields.get("charged", "").split())),
        int(fields["cost"]),
        fields.get("p", ""),
        tuple(int(fields[f"a{n}"]) for n in range(1, len(keys) + 1) if f"a{n}" in fields),
    )


def counters(record: Sequence[str]) -> tuple[str, ...]:
    """The counters that a record names, in its order (`k1`, `k2`, ...; see prelude.lua)."""
    fields = pairs(record)
    count = sum(name.startswith("k") for name in fields)
    return tuple(fields[f"k{n}"] for n in range(1, count + 1))


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """A flat list of fields and values as a mapping."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def sum_of(text: str) -> int:
    """The sum of amounts in a text."""
    return sum(map(int, text.split()))


def rolling_balance(fields: dict[str, str], oldest: int) -> Balance:
    """The balance of a rolling counter from its fields, buckets before `oldest` left out."""
    held = int(fields.pop("held", 0))
    return Balance(sum(int(n) for bucket, n in fields.items() if int(bucket) >= oldest), held)


def checked(org: str, answer: list[str] | Exception) -> list[str] | Exception:
    """The refusals that every script may answer, as the exceptions of the ledger."""
    if isinstance(answer, Exception):
        return answer
    match answer[1]:
        case "books_closed":
            return BooksClosedError(org)
        case "clock_skew":
            return ClockSkewError(f"{answer[0]}: {SKEW}")
        case "holds_mismatch":
            return HoldsMismatchError(f"{answer[0]}: the reservation holds other counters")
        case "counter_range":
            return CounterRangeError(f"{answer[2]}: stands at 2**62 or beyond")
    return answer


def ending(reply: Sequence[str]) -> Ending:
    """The answer of a script that ends a reservation."""
    id_, outcome, charged = reply
    return Ending(id_, Outcome(outcome), tuple(map(int, charged.split())))


def ending_or_error(org: str, answer: list[str] | Exception) -> Ending | Exception:
    """As `ending`, or why there is none."""
    reply = checked(org, answer)
    return reply if isinstance(reply, Exception) else ending(reply)
