"""What stands where in `data_dir`, and that only one sidecar uses it.

The directory holds the embedded ledger. Two services on it would each enforce the limits alone, and
Python's gRPC server would let both listen on one socket without a word: so it is locked.
"""

import fcntl
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from extauthz.errors import OperatorError

OWNER_ONLY = 0o077
"""The umask of all that runs here: whatever is made in `data_dir` is its owner's alone."""

_SOCKET_PATH_BYTES_MAX = 107
_ORPHANS_SECONDS = 20.0
"""How long the children of an `up` that was killed may take to end: they settle what they have."""


class DataDirError(OperatorError):
    """`data_dir` cannot be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class DataDir:
    """Paths in `data_dir`, which only its owner may enter."""

    root: Path

    @property
    def check_socket(self) -> Path:
        """Where Check listens."""
        return self.root / "run" / "check.sock"

    @property
    def sink_socket(self) -> Path:
        """Where the access-log sink listens."""
        return self.root / "run" / "sink.sock"

    @property
    def hop_socket(self) -> Path:
        """Envoy's own, between its access logger and the sink."""
        return self.root / "run" / "hop.sock"

    @property
    def envoy_admin_socket(self) -> Path:
        """Envoy's admin interface."""
        return self.root / "run" / "envoy.sock"

    @property
    def store_socket(self) -> Path:
        """Where the embedded store listens."""
        return self.root / "run" / "store.sock"

    @property
    def store(self) -> Path:
        """The embedded store's files."""
        return self.root / "store"

    @property
    def envoy_config(self) -> Path:
        """The rendered bootstrap that Envoy runs with."""
        return self.root / "envoy" / "envoy.yaml"

    @property
    def envoy_secrets(self) -> Path:
        """SDS files that name the credential files; they hold no credential themselves."""
        return self.root / "envoy" / "secrets"

    @property
    def ca(self) -> Path:
        """The local CA, where the config names no other folder."""
        return self.root / "ca"

    @property
    def envoy_certificates(self) -> Path:
        """Certificates that the local CA has issued for intercepted hosts, with their keys."""
        return self.root / "envoy" / "certificates"

    @property
    def access_log(self) -> Path:
        """Envoy's file access log."""
        return self.root / "access_log.jsonl"

    @property
    def access_log_bookmark(self) -> Path:
        """Up to where the service has reconciled that file."""
        return self.root / "access_log.bookmark"

    @property
    def in_force(self) -> Path:
        """Which budgets and orgs the service has had in force."""
        return self.root / "in_force.json"

    @property
    def books_seen(self) -> Path:
        """A file for each org whose books were seen in the store."""
        return self.root / "books_seen"

    @property
    def spool(self) -> Path:
        """Entries that the store could not take yet."""
        return self.root / "spool"

    @property
    def books(self) -> Path:
        """The archives, a folder for each org."""
        return self.root / "books"

    @property
    def admin_token(self) -> Path:
        """The admin listener's token."""
        return self.root / "admin_token"

    def prepare(self) -> None:
        """Make the directory and what is in it.

        Raises:
            DataDirError: it cannot be made, or its path is too long for unix sockets.
        """
        longest = self.envoy_admin_socket
        if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES_MAX:
            raise DataDirError(
                f"data_dir: {self.root} is too long a path: unix sockets allow "
                f"{_SOCKET_PATH_BYTES_MAX} bytes and '{longest.name}' goes into it; "
                "set data_dir to a shorter path"
            )
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _for_owner_only(self.root)
            for folder in ("run", "store", "books", "envoy", "envoy/secrets", "envoy/certificates"):
                (self.root / folder).mkdir(mode=0o700, exist_ok=True)
                _for_owner_only(self.root / folder)
        except OSError as error:
            raise self._unusable(error) from error

    def lock(self, name: str) -> IO[str]:
        """Be the only `name` on this directory, as long as the returned file is open anywhere.

        Children inherit it, so it also says when the last process of a killed one has ended: two
        stores that write the same files would destroy the ledger.

        Raises:
            DataDirError: another process is, or the directory may not be written.
        """
        path = self.root / f"{name}.lock"
        try:
            file = path.open("a+")
        except OSError as error:
            raise self._unusable(error) from error
        deadline = time.monotonic() + _ORPHANS_SECONDS
        while not _locked(file):
            file.seek(0)
            owner = file.read().strip()
            if _is_alive(owner) or time.monotonic() > deadline:
                file.close()
                raise DataDirError(
                    f"data_dir: {self.root} is in use by another 'extauthz {name}' "
                    f"(process {owner or 'unknown'}): "
                    "stop that one, or give this one a data_dir of its own"
                )
            time.sleep(0.05)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        return file

    def read_admin_token(self) -> str:
        """The admin listener's token, made at the first start; only the owner may read it."""
        try:
            return self.admin_token.read_text().strip()
        except FileNotFoundError:
            token = secrets.token_urlsafe(32)
            descriptor = os.open(self.admin_token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(token + "\n")
            return token

    def _unusable(self, error: OSError) -> DataDirError:
        return DataDirError(
            f"data_dir: {self.root} cannot be used ({error.strerror}): "
            "set it to a directory that this user may write"
        )


def _for_owner_only(folder: Path) -> None:
    """One that was there before may have been open to others, who could put sockets into it.

    A folder of somebody else (a container's volume) stays as it is: its owner says who comes in.
    """
    found = folder.stat()
    if found.st_uid == os.geteuid() and found.st_mode & OWNER_ONLY:
        folder.chmod(found.st_mode & 0o700)


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_alive(process: str) -> bool:
    return process.isdecimal() and Path("/proc", process).exists()
