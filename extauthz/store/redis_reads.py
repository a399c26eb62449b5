"""What a Redis or Valkey store tells without changing anything."""

from collections.abc import Sequence

from extauthz.ledger import Balance, Key, Overrides, Row, Standing, oldest_bucket, width_of
from extauthz.store.base import StoredReservation, check_keys
from extauthz.store.codec import (
    archive_key,
    leases_key,
    overrides_key,
    pairs,
    record_key,
    rolling_balance,
    rows_key,
    standing_in,
    stored,
    unconfirmed_key,
)
from extauthz.store.courier import Courier
from extauthz.store.override_fields import key_field, key_of, overrides_of
from extauthz.store.row_fields import row_of, seq_of


class RedisReads:
    """The reading half of `RedisStore`: plain commands, each answered by the org's own server."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier

    async def overrides(self, org: str, at_ms: int) -> Overrides:
        """See `LedgerStore`."""
        (flat,) = await self._courier.read(org, ("HGETALL", overrides_key(org)))
        return overrides_of(pairs(flat), at_ms)

    async def _key(self, org: str, key_hash: str) -> tuple[Key | None, bool]:
        """Whose a key is, and whether the org has books."""
        # (HMGET, as a reply of nothing at all would be taken for no reply)
        fields, is_open = await self._courier.read(
            org, ("HMGET", overrides_key(org), key_field(key_hash)), ("EXISTS", rows_key(org))
        )
        return key_of(fields[0]), bool(int(is_open))

    async def balances(self, org: str, keys: Sequence[str], at_ms: int) -> tuple[Balance, ...]:
        """See `LedgerStore`."""
        check_keys(org, keys)
        widths = [width_of(key) for key in keys]
        replies = await self._courier.read(
            org,
            *(
                ("HMGET", key, "spent", "held") if width is None else ("HGETALL", key)
                for key, width in zip(keys, widths, strict=True)
            ),
        )
        return tuple(
            Balance(int(reply[0] or 0), int(reply[1] or 0))
            if width is None
            else rolling_balance(pairs(reply), oldest_bucket(at_ms, width))
            for reply, width in zip(replies, widths, strict=True)
        )

    async def open_reservations(self, org: str) -> int:
        """See `LedgerStore`."""
        (count,) = await self._courier.read(org, ("ZCARD", leases_key(org)))
        return int(count)

    async def open_ids(self, org: str) -> list[str]:
        """See `LedgerStore`."""
        (ids,) = await self._courier.read(org, ("ZRANGE", leases_key(org), "0", "-1"))
        return list(ids)

    async def unconfirmed_ids(self, org: str) -> list[str]:
        """See `LedgerStore`."""
        but_the_opening = ("-inf", "(+inf", "BYSCORE")
        (ids,) = await self._courier.read(org, ("ZRANGE", unconfirmed_key(org), *but_the_opening))
        return list(ids)

    async def rows(self, org: str, after_seq: int, count: int) -> list[Row]:
        """See `LedgerStore`."""
        place = (rows_key(org), f"0-{after_seq + 1}", "+", "COUNT", str(count))
        (entries,) = await self._courier.read(org, ("XRANGE", *place))
        return [row_of(*entry) for entry in entries]

    async def standing(self, org: str) -> Standing:
        """See `LedgerStore`."""
        flat, is_open = await self._courier.read(
            org, ("HGETALL", archive_key(org)), ("EXISTS", rows_key(org))
        )
        last_seq = 0
        if is_open:
            (stream,) = await self._courier.read(org, ("XINFO", "STREAM", rows_key(org)))
            last_seq = seq_of(
                dict(zip(stream[::2], stream[1::2], strict=True))["last-generated-id"]
            )
        return standing_in(pairs(flat), last_seq)

    async def reservations(self, org: str, ids: Sequence[str]) -> dict[str, StoredReservation]:
        """See `LedgerStore`."""
        records = await self._courier.read(org, *(("HGETALL", record_key(org, id_)) for id_ in ids))
        return {id_: stored(record) for id_, record in zip(ids, records, strict=True) if record}
