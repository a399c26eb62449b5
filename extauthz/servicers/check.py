"""`envoy.service.auth.v3.Authorization/Check`: the one question that every call asks."""

import asyncio
import time
from typing import Any, Protocol

import grpc

from extauthz.pb import ext_authz_pb2
from extauthz.service.authorize import Authorizer
from extauthz.service.verdict import CallAttributes, Verdict
from extauthz.servicers.translate import call_attributes, check_response, proceed

SERVICE = "envoy.service.auth.v3.Authorization"
BODY_BYTES_MAX = 32 * 1024 * 1024


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
        if request.attributes.context_extensions.get("phase") == "identity":
            return await self._identity_first(call, started)
        try:
            verdict = await self._authorizer.authorize(call)
        except asyncio.CancelledError:
            self._observer.cancelled()
            raise
        response = check_response(verdict, len(call.body), self._authorizer.clock())
        self._observer.decided(verdict, time.perf_counter() - started)
        return response

    async def _identity_first(
        self, call: CallAttributes, started: float
    ) -> ext_authz_pb2.CheckResponse:
        """By the headers alone: a refusal counts as one, a yes only lets the body be read."""
        refusal = await self._authorizer.refuse_by_headers(call, BODY_BYTES_MAX)
        if refusal is None:
            return proceed()
        self._observer.decided(refusal, time.perf_counter() - started)
        return check_response(refusal, 0, self._authorizer.clock())

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
