"""`extauthz serve`: the service process. Check, the sink, expiry, metrics; reload and drain."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from operator import attrgetter
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from extauthz.admin.http import AdminServer
from extauthz.config import Config, ConfigError, load, policies_of, prices_of
from extauthz.ids import uuid7
from extauthz.metrics import Metrics
from extauthz.server.archives import SeenBooks, archives_of, expect_books
from extauthz.server.audits import AuditTimer
from extauthz.server.data_dir import OWNER_ONLY, DataDir
from extauthz.server.http_listener import HttpListener, StartError, raise_descriptor_limit
from extauthz.server.in_force import InForceError, take_over
from extauthz.server.store_url import store_url
from extauthz.service.archiver import Archiver
from extauthz.service.authorize import Authorizer
from extauthz.service.background import AbandonQueue, ExpiryLoop
from extauthz.service.identify import Identifier
from extauthz.service.key_ring import KeyRing
from extauthz.service.reconcile import Reconciler
from extauthz.service.reserving import Reserving
from extauthz.service.rules import Rules, system_clock
from extauthz.service.settle import Settler
from extauthz.service.waiting import HeldRoom
from extauthz.servicers import access_log, check
from extauthz.servicers.access_log import AccessLogServicer
from extauthz.servicers.body_reader import BodyReader
from extauthz.servicers.check import CheckServicer
from extauthz.servicers.follow_log import LogFollower
from extauthz.servicers.log_files import LogFiles
from extauthz.servicers.observing import Observer
from extauthz.store.base import StoreError
from extauthz.store.redis import RedisStore
from extauthz.store.spool import Spool

_MESSAGE_BYTES_MAX = 256 * 1024 * 1024
"""Above a body of 32 MiB with its headers, and above any backlog that Envoy sends at once: at
Python's default of 4 MiB a backlog of 5.2 MB vanished whole (see docs/envoy.md)."""

_PENDING_MAX = 20_000
"""Checks that wait for their turn: twice of what Envoy sends at once."""

_GRACE_SECONDS = 5.0

_COLLECT_AFTER = 20_000
"""Objects more than were freed: a Check in flight has about a hundred."""

_FIXED = (
    "store",
    "data_dir",
    "listen",
    "intercept",
    "books",
    "providers",
    "identity",
    "timeouts",
    # Envoy's bootstrap is made from these: how long it waits for Check, how often it tells of open
    # streams. A shorter lease alone would let those expire.
    "defaults.hold_wait",
    "defaults.lease",
    "defaults.org",
)
"""What a reload cannot change."""

log = logging.getLogger(__name__)


class Service:
    """Everything that one service process runs, wired once."""

    def __init__(self, config: Config, config_path: Path) -> None:
        self._config, self._config_path = config, config_path
        self._data_dir = DataDir(config.data_dir)
        policies = take_over(self._data_dir.in_force, policies_of(config), system_clock())
        self._rules = Rules(policies, prices_of(config))
        self._metrics = Metrics()
        self._metrics.reload_successful.set(1)
        clock, room = system_clock, HeldRoom()
        self._store = RedisStore.from_url(
            store_url(config), wait_replicas=config.store.wait_replicas
        )
        self._observer = Observer(self._metrics, clock)
        self._abandoned = AbandonQueue(self._store, room, clock)
        self._reader = BodyReader()
        identifier = Identifier(self._rules, KeyRing(self._store), clock)
        reserving = Reserving(self._rules, self._store, identifier, room, self._abandoned, clock)
        authorizer = Authorizer(self._rules, identifier, self._reader, reserving, clock)
        settler = Settler(self._rules, self._store, room, clock, self._observer)
        self._check = CheckServicer(authorizer, self._observer)
        self._spool = Spool(self._data_dir.spool)
        self._metrics.primary_changes.set_function(lambda: self._store.primary_changes)
        self._metrics.spool_depth.set_function(lambda: self._spool.depth)
        self._sink = AccessLogServicer(
            settler,
            reserving.open_calls,
            self._abandoned,
            self._spool,
            self._observer,
            authorizer.uploads.end,
        )
        self._follower = LogFollower(
            LogFiles(self._data_dir.access_log),
            self._data_dir.access_log_bookmark,
            Reconciler(settler, clock),
            self._observer,
            lambda: self._store.primary_changes,
        )
        self._metrics.reconcile_lag_seconds.set_function(lambda: self._follower.lag_seconds)
        self._expiry = ExpiryLoop(
            self._rules,
            self._store,
            room,
            clock,
            reserving.open_calls,
            self._observer.expired,
            backlog=lambda: self._spool.depth + self._follower.backlog,
        )
        self._archiver = Archiver(
            lambda: self._rules.policies.all_orgs,
            self._store,
            archives_of(config),
            clock,
            self._metrics,
            holder=f"{socket.gethostname()} {uuid7(clock())}",
            seen=SeenBooks(config).add,
        )
        self._audits = AuditTimer(
            config_path,
            config.books.audit_every / 1000,
            self._metrics,
            lambda: self._archiver.is_archiving,
        )
        self._admin = AdminServer(
            self._rules,
            self._store,
            clock,
            self._metrics,
            self._why_not_ready,
            self._data_dir.read_admin_token(),
        )
        self._draining = False

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain.

        Raises:
            StartError: the store is away or forgetful, or an address is taken.
        """
        try:
            await self._store.check_ready()
        except StoreError as error:
            raise StartError(f"store: {error}") from error
        orgs = self._rules.policies.all_orgs
        expect_books(self._store, self._config, archives_of(self._config), orgs)
        await self._archiver.begin()
        listen = self._config.listen
        metrics = HttpListener(self._admin.metrics_app())
        admin = HttpListener(self._admin.admin_app())
        await metrics.start(listen.metrics, "metrics")
        await admin.start(listen.admin, "admin")
        await self._reader.start()
        server, health = await self._grpc_server()
        background = [
            asyncio.create_task(_forever(self._expiry.run), name="expiry"),
            asyncio.create_task(_forever(self._abandoned.run), name="abandon"),
            asyncio.create_task(_forever(self._sink.replay), name="replay"),
            asyncio.create_task(_forever(self._follower.run), name="reconcile"),
            asyncio.create_task(_forever(self._archiver.run), name="archive"),
        ]
        if self._config.books.audit_every:
            background.append(asyncio.create_task(_forever(self._audits.run), name="audit"))
        _spare_the_collector()
        log.info("ready: Check and sink listen in %s", self._data_dir.root / "run")
        await stop.wait()
        self._draining = True
        log.info("draining")
        await health.enter_graceful_shutdown()
        await server.stop(_GRACE_SECONDS)
        if not await self._sink.drain(_GRACE_SECONDS):
            log.warning("some entries could not be settled; their leases will charge them")
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await self._abandoned.drain()
        await self._archiver.finish()
        await self._reader.stop()
        self._spool.close()
        await self._store.close()
        for listener in (metrics, admin):
            await listener.stop()

    def reload(self) -> None:
        """Take over agents, budgets, prices and defaults from the file; on an error, nothing."""
        try:
            config = load(self._config_path)
            self._must_be_reloadable(config)
            policies, prices = policies_of(config), prices_of(config)
            policies = take_over(self._data_dir.in_force, policies, system_clock())
        except (ConfigError, InForceError) as error:
            self._metrics.reload_successful.set(0)
            log.error("the config was not reloaded: %s", error)  # noqa: TRY400 - says it all
            return
        self._rules.take_over(policies, prices)
        self._metrics.reload_successful.set(1)
        log.info("the config was reloaded")

    def _must_be_reloadable(self, config: Config) -> None:
        changed = [
            f"{name}: changed, which needs a restart"
            for name in _FIXED
            if _fixed(config, name) != _fixed(self._config, name)
        ]
        if changed:
            raise ConfigError(str(self._config_path), changed)

    async def _grpc_server(self) -> tuple[grpc.aio.Server, HealthServicer]:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
                ("grpc.so_reuseport", 0),
                # Beyond its own bound (1,000) gRPC refuses whoever comes next, and that is a 503.
                ("grpc.server.max_pending_requests", _PENDING_MAX),
                ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_MAX),
            ]
        )
        health = HealthServicer()
        server.add_generic_rpc_handlers((self._check.handler(), self._sink.handler()))
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        for path in (self._data_dir.check_socket, self._data_dir.sink_socket):
            server.add_insecure_port(f"unix:{path}")
        for name in ("", check.SERVICE, access_log.SERVICE):
            await health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        return server, health

    async def _why_not_ready(self) -> str | None:
        if self._draining:
            return "draining"
        try:
            await self._store.check_ready()
        except StoreError as error:
            return f"store: {error}"
        for org in self._rules.policies.orgs:
            if (behind := self._archiver.behind(org)) is not None:
                return f"books: {behind}"
        return None


def _fixed(config: Config, name: str) -> object:
    """A setting that Envoy or the store is started with; budgets of providers are no part of it."""
    value = attrgetter(name)(config)
    if name != "providers":
        return value
    return {name: block.model_copy(update={"budgets": ()}) for name, block in value.items()}


async def serve(config: Config, config_path: Path) -> None:
    """Run the service until SIGTERM or SIGINT; SIGHUP reloads."""
    os.umask(OWNER_ONLY)
    raise_descriptor_limit()
    data_dir = DataDir(config.data_dir)
    data_dir.prepare()
    with data_dir.lock("serve"):
        service = Service(config, config_path)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, service.reload)
        await service.run(stop)


def _spare_the_collector() -> None:
    """What is there at the start stays: it is not gone through again and again.

    A call's own objects are freed by counting, but thousands that are open look like garbage to be:
    at Python's thresholds the collector went through all of them several times a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 100)


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    """Keep a background loop alive: what it meets unforeseen is logged, not the end of it."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a background loop failed and starts again")
            await asyncio.sleep(1)
