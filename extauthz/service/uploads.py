"""Large bodies on their way to Check: so much at once of one agent, and so much of all.

Envoy keeps a body until Check has answered, and Check is sent a copy. `max_in_flight` is no bound
on that, as it counts calls that were let through. So a body is given a place by its headers, before
it is read, and gives it back when it has been decided on, or its call has ended otherwise.
"""

from collections import Counter
from dataclasses import dataclass, field

from extauthz.policies import Agent
from extauthz.reasons import Reason
from extauthz.service.denied import Denied

_BODY_BYTES_MAX = 32 * 2**20
"""The largest that is read."""

AGENT_BYTES_MAX = 64 * 2**20
"""Two of the largest bodies; less where `max_in_flight` is 1."""

ALL_BYTES_MAX = 256 * 2**20
"""With the copies that are made of it well below Envoy's heap."""

_FORGET_AFTER_MS = 130_000
"""Longer than Envoy waits for a whole request."""


@dataclass(frozen=True, slots=True)
class _Upload:
    agent: str
    size: int
    at_ms: int


@dataclass(slots=True)
class Uploads:
    """The places, by the id that Envoy has given to each request."""

    _under_way: dict[str, _Upload] = field(default_factory=dict)  # the oldest first
    _bytes_of: Counter[str] = field(default_factory=Counter)

    @property
    def total_bytes(self) -> int:
        """Of all agents."""
        return self._bytes_of.total()

    def begin(self, request_id: str, agent: Agent, content_length: str, at_ms: int) -> None:
        """Give a place to a body, of the largest size where none is announced.

        Raises:
            Denied: `too_many_in_flight`; to be tried again.
        """
        self._forget(at_ms)
        most = _BODY_BYTES_MAX if agent.max_in_flight == 1 else AGENT_BYTES_MAX
        size = min(int(content_length), most) if content_length.isdecimal() else _BODY_BYTES_MAX
        if self._bytes_of[agent.name] + size > most or self.total_bytes + size > ALL_BYTES_MAX:
            raise Denied(
                Reason.TOO_MANY_IN_FLIGHT,
                429,
                f"agent '{agent.name}', or all agents together, have as many large bodies on their "
                "way as they may: try again when one has arrived",
            )
        self.end(request_id)
        self._under_way[request_id] = _Upload(agent.name, size, at_ms)
        self._bytes_of[agent.name] += size

    def end(self, request_id: str) -> None:
        """It was decided on, or its call has ended; anything else is passed over."""
        upload = self._under_way.pop(request_id, None)
        if upload is None:
            return
        self._bytes_of[upload.agent] -= upload.size
        if not self._bytes_of[upload.agent]:
            del self._bytes_of[upload.agent]

    def _forget(self, at_ms: int) -> None:
        """End those of which nobody has told the end."""
        while self._under_way:
            request_id, oldest = next(iter(self._under_way.items()))
            if at_ms - oldest.at_ms < _FORGET_AFTER_MS:
                return
            self.end(request_id)
