"""`envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs`: the sink that settles calls.

An entry is not let go before it is safe: in the ledger, or, while the store does not take it, in
the spool on disk. The sink reads no further before that, so Envoy keeps what comes after.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from extauthz.pb import access_log_pb2
from extauthz.service.background import AbandonQueue
from extauthz.service.call_record import CallRecord, RecordError
from extauthz.service.completed_call import CompletedCall
from extauthz.service.settle import Settler
from extauthz.servicers.translate import (
    completed_call,
    has_left,
    record_text,
    request_id,
    settling_part,
)
from extauthz.store.spool import Spool

SERVICE = "envoy.service.accesslog.v3.AccessLogService"
_RETRY_SECONDS = 0.2

log = logging.getLogger(__name__)


class EntryObserver(Protocol):
    """Told of entries that cannot be settled."""

    def unreadable_entry(self) -> None:
        """An entry's metadata is not a call record of this version."""


class AccessLogServicer:
    """Reads entries and has them settled."""

    def __init__(
        self,
        settler: Settler,
        open_calls: MutableMapping[str, CallRecord],
        abandoned: AbandonQueue,
        spool: Spool,
        observer: EntryObserver,
        ended: Callable[[str], None] = lambda _request_id: None,
    ) -> None:
        self._settler = settler
        self._open_calls = open_calls
        self._abandoned = abandoned
        self._spool = spool
        self._observer = observer
        self._ended = ended
        self._under_way: set[asyncio.Task[None]] = set()

    async def stream(
        self, messages: AsyncIterator[access_log_pb2.StreamAccessLogsMessage], _context: Any
    ) -> access_log_pb2.StreamAccessLogsResponse:
        """Settle every entry of every message, in order."""
        async for message in messages:
            # Shielded: when Envoy goes away in the middle, what it has handed over is still ours.
            task = asyncio.create_task(self.take(message))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            await asyncio.shield(task)
        return access_log_pb2.StreamAccessLogsResponse()

    async def drain(self, seconds: float) -> bool:
        """Wait until everything that was handed over is in the ledger; at shutdown.

        False if it is not by then: the store is away, perhaps for good.
        """
        try:
            async with asyncio.timeout(seconds):
                while self._under_way:
                    await asyncio.wait(self._under_way)
        except TimeoutError:
            return False
        return True

    async def take(self, message: access_log_pb2.StreamAccessLogsMessage) -> None:
        """Make one message's entries safe: returns only when they are."""
        left = await self.settle(message.http_logs.log_entry)
        while left:
            try:
                await asyncio.to_thread(self._spool.append, [settling_part(data) for data in left])
            except OSError:
                log.exception("the spool cannot be written: entries are held in memory")
                await asyncio.sleep(_RETRY_SECONDS)
                left = await self.settle(left)
            else:
                return

    async def settle(self, entries: Sequence[bytes]) -> list[bytes]:
        """Settle serialized entries; returns those that the store did not take."""
        calls: list[CompletedCall] = []
        entry_of: dict[int, bytes] = {}
        for data in entries:
            call = self._read(data)
            if call is not None:
                calls.append(call)
                entry_of[id(call)] = data
        try:
            left = await self._settler.settle(calls)
        except Exception:
            log.exception("some entries cannot be settled together: now each for itself")
            left = [call for call in calls if await self._is_left(call)]
        return [entry_of[id(call)] for call in left]

    async def _is_left(self, call: CompletedCall) -> bool:
        """Whether the store did not take it; one that cannot be settled at all is given up."""
        try:
            return bool(await self._settler.settle([call]))
        except Exception:
            # In the spool it would keep all behind it from being settled, for ever.
            log.exception("%s cannot be settled", call.record.reservation_id)
            self._observer.unreadable_entry()
            return False

    async def replay(self) -> None:
        """Settle for ever what the spool holds, oldest first."""
        while True:
            entries = await asyncio.to_thread(self._spool.oldest) if self._spool.depth else []
            while entries:
                entries = await self.settle(entries)
                if entries:
                    await asyncio.sleep(_RETRY_SECONDS)
                else:
                    await asyncio.to_thread(self._spool.drop_oldest)
            await asyncio.sleep(_RETRY_SECONDS)

    def _read(self, data: bytes) -> CompletedCall | None:
        """An entry of a reserved call; None for any other, and for one that is unreadable."""
        try:
            entry = access_log_pb2.HTTPAccessLogEntry.FromString(data)
            text = record_text(entry)
            known = self._known(entry)
            if text is not None:
                return completed_call(entry, CallRecord.from_json(text))
        except (DecodeError, RecordError) as error:
            # Its reservation will expire to a charge: against the agent, and seen.
            log.error("an access-log entry cannot be settled: %s", error)  # noqa: TRY400 - no trace wanted
            self._observer.unreadable_entry()
            return None
        if known is not None and not has_left(entry):
            # Envoy did not take Check's answer, so the call never left.
            self._abandoned.abandon(self._settler.release_command(known))
        return None

    def _known(self, entry: access_log_pb2.HTTPAccessLogEntry) -> CallRecord | None:
        if entry.common_properties.access_log_type == access_log_pb2.DOWNSTREAM_PERIODIC:
            return None
        self._ended(request_id(entry))
        return self._open_calls.pop(request_id(entry), None)

    def handler(self) -> grpc.GenericRpcHandler:
        """The gRPC service."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "StreamAccessLogs": grpc.stream_unary_rpc_method_handler(
                    self.stream,
                    request_deserializer=access_log_pb2.StreamAccessLogsMessage.FromString,
                    response_serializer=access_log_pb2.StreamAccessLogsResponse.SerializeToString,
                )
            },
        )
