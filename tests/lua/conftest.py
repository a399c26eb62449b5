"""The filter under a LuaJIT, driven as Envoy drives it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lupa.luajit21 as lupa
import pytest

FILTER = Path(__file__).parents[2] / "extauthz" / "bootstrap" / "filter.lua"
FAKE_ENVOY = Path(__file__).parent / "fake_envoy.lua"

DRIVE_RESPONSE = b"""
local stream = ...
return function(call, headers, pieces, whole)
  local handle, state = stream(call, headers)
  local filter = coroutine.wrap(envoy_on_response)
  filter(handle)
  if state.reading then
    for i = 1, #pieces do filter(pieces[i]) end
    if whole then filter(nil) end
  end
  return state
end
"""
DRIVE_REQUEST = b"""
local stream = ...
return function(call, body)
  local handle, state = stream(call, {}, body)
  envoy_on_request(handle)
  return state
end
"""


@dataclass(frozen=True)
class ForwardedRequest:
    buffered: bool
    sent: bytes | None
    status: str | None
    response: bytes | None


class LuaFilter:
    """filter.lua in one Lua state, as one worker of Envoy holds it."""

    def __init__(self) -> None:
        self._lua = lupa.LuaRuntime(encoding=None)
        self._lua.execute(FILTER.read_bytes())
        stream = self._lua.execute(FAKE_ENVOY.read_bytes())
        self._drive_response = self._lua.execute(DRIVE_RESPONSE, stream)
        self._drive_request = self._lua.execute(DRIVE_REQUEST, stream)
        self.writes = 0
        self.forwarded: list[bytes] = []

    def response(
        self,
        pieces: list[bytes],
        content_type: str | None = "application/json",
        *,
        encoding: str | None = None,
        call: dict[str, Any] | None = None,
        aborted: bool = False,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """What stands in extauthz.usage after these pieces of a response."""
        headers = {**(headers or {}), "content-type": content_type, "content-encoding": encoding}
        state = self._drive_response(
            self._to_lua({"rid": "r1"} if call is None else call),
            self._to_lua({k: v for k, v in headers.items() if v is not None}),
            self._to_lua(pieces),
            not aborted,
        )
        self.writes = int(state[b"writes"])
        self.forwarded = list(state[b"forwarded"].values())
        return {key.decode(): value for key, value in state[b"usage"].items()}

    def request(self, body: bytes | None, call: dict[str, Any]) -> ForwardedRequest:
        state = self._drive_request(self._to_lua(call), body)
        status = state[b"status"]
        return ForwardedRequest(
            buffered=bool(state[b"buffered"]),
            sent=state[b"sent"],
            status=status and status.decode(),
            response=state[b"response"],
        )

    def _to_lua(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._lua.table_from({k.encode(): self._to_lua(v) for k, v in value.items()})
        if isinstance(value, list):
            return self._lua.table_from([self._to_lua(v) for v in value])
        return value.encode() if isinstance(value, str) else value


@pytest.fixture(scope="session")
def lua_filter() -> LuaFilter:
    return LuaFilter()
