"""`extauthz up`: the whole sidecar, that is the store, the service and Envoy.

They are started in the order in which they need each other, and stopped in the order in which no
access-log entry is lost.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import aiohttp

from extauthz.bootstrap import arguments, render
from extauthz.config import Config, ConfigError
from extauthz.config.values import Address
from extauthz.server.archives import books_key_variables
from extauthz.server.children import Child, environment_without
from extauthz.server.data_dir import OWNER_ONLY, DataDir
from extauthz.server.envoy import (
    EnvoyAdmin,
    credential_variables,
    envoy_binary,
    envoy_settings,
    missing_credentials,
    write_secret_files,
)
from extauthz.server.http_listener import raise_descriptor_limit
from extauthz.server.interception import issue_certificates, missing_authority
from extauthz.server.rotation import LogRotation
from extauthz.store.base import StoreError
from extauthz.store.embedded import valkey_command
from extauthz.store.redis import RedisStore

_STOP_SECONDS = 15.0
"""More than the service's own grace for what it has been handed."""

_STORE_READY_SECONDS = 300.0
"""A store that reads a large log after a crash takes its time; one that fails ends at once."""

_STOP_ORDER = ("envoy", "service", "store")

_AFTER_FLUSH_SECONDS = 0.5
"""More than Envoy's access-log flush interval: what is buffered then is with the sink."""

log = logging.getLogger(__name__)


class Sidecar:
    """The processes of one sidecar."""

    def __init__(self, config: Config, config_path: Path, lock: IO[str]) -> None:
        self._config, self._config_path = config, config_path
        self._held_open = (lock.fileno(),)
        self._data_dir = DataDir(config.data_dir)
        self._settings = envoy_settings(config)
        self._envoy_admin = EnvoyAdmin(self._data_dir.envoy_admin_socket)
        self.rotation = LogRotation(self._data_dir, self._envoy_admin)
        self._started: list[Child] = []

    def check_start(self) -> None:
        """What can be known before anything is started.

        Raises:
            ConfigError: a credential, a binary or an address is missing or taken.
        """
        errors = list(missing_credentials(self._config))
        listen = self._config.listen
        addresses = {f"listen.{name}": getattr(listen, name) for name in listen.__pydantic_fields__}
        if self._config.intercept is not None:
            addresses["intercept.listen"] = self._config.intercept.listen
            errors += missing_authority(self._config)
        for name, address in addresses.items():
            problem = _listen_problem(address)
            if problem:
                errors.append(f"{name}: {address} {problem}")
        if errors:
            raise ConfigError(str(self._config_path), errors)
        envoy_binary()

    async def start(self) -> None:
        """Start everything.

        Raises:
            ChildError: a process did not become ready; what was started is stopped again.
        """
        try:
            if self._config.store.url is None:
                await self._start(self._store())
            # Together, as each spends most of its start on its own imports.
            async with asyncio.TaskGroup() as both:
                both.create_task(self._start(self._service()))
                both.create_task(self._start_envoy())
        except ExceptionGroup as group:
            await self._stop_children()
            raise group.exceptions[0] from None
        except BaseException:
            await self._stop_children()
            raise

    async def stop(self) -> None:
        """Drain: no new calls, the open ones end, their entries arrive, then everything stops."""
        try:
            drained = await self._envoy_admin.drain(self._config.timeouts.drain / 1000)
        except (aiohttp.ClientError, OSError, TimeoutError):
            drained = False
        if not drained:
            log.warning("some calls were still open after the drain; their leases will charge them")
        await asyncio.sleep(_AFTER_FLUSH_SECONDS)
        await self._stop_children()

    def reload(self) -> None:
        """SIGHUP goes on to the service."""
        for child in self._started:
            if child.name == "service":
                child.signal(signal.SIGHUP)

    async def _start(self, child: Child) -> None:
        self._started.append(child)
        await child.start()

    async def _start_envoy(self) -> None:
        path = self._data_dir.envoy_config
        write_secret_files(self._config, self._data_dir, self._settings)
        if self._config.intercept is not None:
            await asyncio.to_thread(issue_certificates, self._config, self._data_dir)
        path.write_text(await asyncio.to_thread(render, self._settings))
        await self._start(self._envoy(path))

    async def _stop_children(self) -> None:
        """Envoy first, so that its last entries find the service, then that, then the store."""
        for child in sorted(self._started, key=lambda child: _STOP_ORDER.index(child.name)):
            await child.stop(_STOP_SECONDS)
        self._started.clear()

    def _store(self) -> Child:
        socket_path = self._data_dir.store_socket
        store = RedisStore.from_url(f"unix://{socket_path}")

        async def answers() -> bool:
            try:
                await store.check_ready()
            except StoreError:
                return False
            await store.close()
            return True

        return Child(
            "store",
            valkey_command(self._data_dir.store, socket_path),
            {"PATH": os.environ.get("PATH", "")},
            answers,
            ready_seconds=_STORE_READY_SECONDS,
            log_file=self._data_dir.root / "store.log",
            held_open=self._held_open,
        )

    def _service(self) -> Child:
        async def serving() -> bool:
            # By a connection and not by gRPC's health check: that would keep threads in this
            # process, which forks.
            try:
                _, writer = await asyncio.open_unix_connection(self._data_dir.check_socket)
            except OSError:
                return False
            writer.close()
            return True

        return Child(
            "service",
            [sys.executable, "-m", "extauthz", "serve", "-c", str(self._config_path)],
            # The providers' credentials are for Envoy alone.
            environment_without(credential_variables(self._config)),
            serving,
            held_open=self._held_open,
        )

    def _envoy(self, path: Path) -> Child:
        return Child(
            "envoy",
            [str(envoy_binary()), *arguments(self._settings, path)],
            # Who writes the books is the service.
            environment_without(books_key_variables(self._config)),
            self._envoy_admin.is_ready,
            log_file=self._data_dir.root / "envoy.log",
            held_open=self._held_open,
        )


async def up(config: Config, config_path: Path, announce: Callable[[Config], None]) -> None:
    """Run the sidecar until SIGTERM or SIGINT; SIGHUP reloads.

    Raises:
        ConfigError, DataDirError, ChildError: it cannot start.
    """
    os.umask(OWNER_ONLY)
    raise_descriptor_limit()
    data_dir = DataDir(config.data_dir)
    data_dir.prepare()
    with data_dir.lock("up") as lock:
        sidecar = Sidecar(config, config_path, lock)
        sidecar.check_start()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        # What starts now reads the file as it is: there is nothing to reload yet.
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        starting = asyncio.create_task(sidecar.start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # stopped while it was starting
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        try:
            await starting
        finally:
            stopping.cancel()
        loop.add_signal_handler(signal.SIGHUP, sidecar.reload)
        announce(config)
        rotating = asyncio.create_task(sidecar.rotation.run())
        await stop.wait()
        rotating.cancel()
        await sidecar.stop()


def _listen_problem(address: Address) -> str | None:
    """Why nothing can listen there; None if something can.

    Probed with SO_REUSEADDR: connections of a process that was killed linger for a while, and are
    no reason to refuse.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            return f"cannot be listened on ({error.strerror}): choose another address"
    return None
