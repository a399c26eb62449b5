"""`envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs`: the sink that settles calls.

An entry is not let go before the ledger has it: while the store is away the sink keeps trying and
reads no further, so Envoy keeps what comes after.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, MutableMapping
from typing import Any, Protocol

import grpc

from extauthz.pb import access_log_pb2
from extauthz.service.call_record import CallRecord, RecordError
from extauthz.service.completed_call import CompletedCall
from extauthz.service.settle import INAPPLICABLE, RETRYABLE, Settler
from extauthz.servicers.translate import completed_call, record_text, request_id

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
        observer: EntryObserver,
    ) -> None:
        self._settler = settler
        self._open_calls = open_calls
        self._observer = observer
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
        """Settle one message's entries; returns only when the ledger has them all."""
        calls: list[CompletedCall] = []
        given_up: list[CallRecord] = []
        for entry in message.http_logs.log_entry:
            known = self._known(entry)
            text = record_text(entry)
            if text is not None:
                call = self._read(entry, text)
                calls += [call] if call else []
            elif known is not None:
                given_up.append(known)  # Envoy did not take Check's answer: the call never left
        while calls:
            calls = await self._settler.settle(calls)
            if calls:
                await asyncio.sleep(_RETRY_SECONDS)
        for record in given_up:
            await self._abandon(record)

    def _known(self, entry: access_log_pb2.HTTPAccessLogEntry) -> CallRecord | None:
        if entry.common_properties.access_log_type == access_log_pb2.DOWNSTREAM_PERIODIC:
            return None
        return self._open_calls.pop(request_id(entry), None)

    def _read(self, entry: access_log_pb2.HTTPAccessLogEntry, text: str) -> CompletedCall | None:
        try:
            return completed_call(entry, CallRecord.from_json(text))
        except RecordError as error:
            # Its reservation will expire to a charge: against the agent, and seen.
            log.error("an access-log entry cannot be settled: %s", error)  # noqa: TRY400 - no trace wanted
            self._observer.unreadable_entry()
            return None

    async def _abandon(self, record: CallRecord) -> None:
        while True:
            try:
                await self._settler.abandon(record)
            except RETRYABLE:
                await asyncio.sleep(_RETRY_SECONDS)
            except INAPPLICABLE:
                log.exception("a reservation cannot be abandoned and is left to its lease")
                return
            else:
                return

    def handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
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
