"""`envoy.service.auth.v3.Authorization/Check`: the one question that every call asks."""

import asyncio
import time
from typing import Any, Protocol

import grpc

from extauthz.pb import ext_authz_pb2
from extauthz.service.authorize import Authorizer, Verdict
from extauthz.servicers.translate import call_attributes, check_response

SERVICE = "envoy.service.auth.v3.Authorization"


class DecisionObserver(Protocol):
    """Told of every decision, for logs and metrics."""

    def decided(self, verdict: Verdict, seconds: float) -> None:
        """One Check was answered."""

    def cancelled(self) -> None:
        """Nobody waited for the answer: the client left, or Envoy's deadline passed."""


class CheckServicer:
    """Translates, decides, translates back."""

    def __init__(self, authorizer: Authorizer, observer: DecisionObserver) -> None:
        self._authorizer = authorizer
        self._observer = observer

    async def check(
        self, request: ext_authz_pb2.CheckRequest, _context: Any
    ) -> ext_authz_pb2.CheckResponse:
        """Decide one call."""
        started = time.perf_counter()
        call = call_attributes(request)
        try:
            verdict = await self._authorizer.authorize(call)
        except asyncio.CancelledError:
            self._observer.cancelled()
            raise
        response = check_response(verdict, len(call.body), self._authorizer.clock())
        self._observer.decided(verdict, time.perf_counter() - started)
        return response

    def handler(self) -> grpc.GenericRpcHandler:
        """The gRPC service."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self.check,
                    request_deserializer=ext_authz_pb2.CheckRequest.FromString,
                    response_serializer=ext_authz_pb2.CheckResponse.SerializeToString,
                )
            },
        )
