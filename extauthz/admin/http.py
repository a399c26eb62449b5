"""The two HTTP listeners of the service process.

`listen.metrics`: `/metrics`, `/healthz` (the process lives), `/readyz` (a call would be decided).
`listen.admin`: `/v1/budgets`, for whoever holds the token in `data_dir/admin_token`.
"""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from aiohttp import web

from extauthz.admin.standing import standing_now
from extauthz.ledger import ClockSkewError
from extauthz.metrics import Metrics
from extauthz.money import format_usd
from extauthz.policies import Unit
from extauthz.service.rules import Clock, Rules
from extauthz.store.base import LedgerStore, StoreError

_APART_SECONDS = 0.25
"""How far apart the same thing is asked for: a crowd that scrapes costs the store no more."""

T = TypeVar("T")

ReadyCheck = Callable[[], Awaitable[str | None]]
"""None when ready, else why not."""


class Shared(Generic[T]):
    """What anybody may ask for: one answer serves all who asked before it was begun.

    Nobody is told what was true before they asked. Instead a crowd waits for the next answer.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asking = asyncio.Lock()
        self._answers: list[tuple[float, T]] = []  # the last and when it was begun, if there is one

    async def get(self) -> T:
        """An answer that was begun after this."""
        asked_at = time.monotonic()
        async with self._asking:
            if self._answers:
                begun_at, answer = self._answers[0]
                if begun_at >= asked_at:
                    return answer
                await asyncio.sleep(max(0.0, begun_at + _APART_SECONDS - time.monotonic()))
            begun_at = time.monotonic()
            answer = await self._ask()
            self._answers[:] = [(begun_at, answer)]
            return answer


@dataclass(slots=True)
class AdminServer:
    """Serves both listeners."""

    rules: Rules
    store: LedgerStore
    clock: Clock
    metrics: Metrics
    ready: ReadyCheck
    token: str
    _exposition: "Shared[bytes]" = field(init=False)
    _readiness: "Shared[str | None]" = field(init=False)

    def __post_init__(self) -> None:
        self._exposition, self._readiness = Shared(self._expose), Shared(self.ready)

    def metrics_app(self) -> web.Application:
        """`/metrics`, `/healthz`, `/readyz`."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        return app

    def admin_app(self) -> web.Application:
        """`/v1/budgets`."""
        app = web.Application(middlewares=[self._must_have_token])
        app.add_routes([web.get("/v1/budgets", self._budgets)])
        return app

    async def _expose(self) -> bytes:
        gauges = self.metrics.budgets
        try:
            gauges.standing, gauges.open_reservations = await standing_now(
                self.rules, self.store, self.clock
            )
        except (StoreError, ClockSkewError):
            # Old balances would look like news: the series end while the store is away.
            gauges.standing, gauges.open_reservations = None, None
        return self.metrics.exposition()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=await self._exposition.get(),
            headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        why_not = await self._readiness.get()
        return web.Response(text=f"{why_not or 'ready'}\n", status=503 if why_not else 200)

    async def _budgets(self, _request: web.Request) -> web.Response:
        try:
            standing, open_reservations = await standing_now(self.rules, self.store, self.clock)
        except (StoreError, ClockSkewError) as error:
            return web.json_response({"error": str(error)}, status=503)
        return web.json_response(
            {
                "open_reservations": open_reservations,
                "budgets": [
                    {
                        "id": budget.id,
                        "scope": budget.scope.value,
                        "name": budget.name,
                        "window": budget.window.name,
                        "unit": budget.unit.value,
                        "shadow": budget.shadow,
                        **{
                            what: format_usd(amount) if budget.unit is Unit.USD else str(amount)
                            for what, amount in (
                                ("limit", budget.limit),
                                ("spent", balance.spent),
                                ("held", balance.held),
                            )
                        },
                    }
                    for budget, balance in standing
                ],
            }
        )

    @web.middleware
    async def _must_have_token(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(errors="surrogateescape"), self.token.encode()):
            return web.json_response(
                {"error": "send 'Authorization: Bearer <data_dir/admin_token>'"}, status=401
            )
        return await handler(request)
