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

_FRESH_SECONDS = 0.25
"""How old an answer may be that anybody can ask for: a crowd that asks costs the store nothing."""

T = TypeVar("T")

ReadyCheck = Callable[[], Awaitable[str | None]]
"""None when ready, else why not."""


class Recent(Generic[T]):
    """What somebody has just asked for: asked again, but not more often than it changes."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asking = asyncio.Lock()
        self._answers: list[tuple[float, T]] = []  # the last, once there is one

    async def get(self) -> T:
        """The last answer if it is fresh, else a new one; who asks meanwhile waits for that."""
        async with self._asking:
            if not self._answers or time.monotonic() - self._answers[-1][0] > _FRESH_SECONDS:
                answer = await self._ask()
                self._answers[:] = [(time.monotonic(), answer)]
            return self._answers[-1][1]


@dataclass(slots=True)
class AdminServer:
    """Serves both listeners."""

    rules: Rules
    store: LedgerStore
    clock: Clock
    metrics: Metrics
    ready: ReadyCheck
    token: str
    _exposition: "Recent[bytes]" = field(init=False)
    _readiness: "Recent[str | None]" = field(init=False)

    def __post_init__(self) -> None:
        self._exposition, self._readiness = Recent(self._expose), Recent(self.ready)

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
