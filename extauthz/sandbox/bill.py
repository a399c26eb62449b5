"""What the sandbox received and what it charges for: names, sizes and sums, never a secret."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any

from extauthz.sandbox.prices import Model, Usage
from extauthz.sandbox.wire import Call

CREDENTIAL_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"}
)
"""Headers that can carry a secret: their names are recorded, their values never are."""


@dataclass(slots=True)
class Received:
    """One request as it arrived, whether or not it was accepted."""

    sequence: int
    provider: str
    method: str
    path: str
    header_names: tuple[str, ...]  # lower case, in order, with repetitions
    headers: dict[str, str]  # values, of the allowed names only
    body_sha256: str
    body_bytes: int
    status: int | None = None  # of the answer, once there is one

    def to_json(self) -> dict[str, Any]:
        """The record as `GET /_sandbox/requests` shows it."""
        return asdict(self) | {"credential_headers": self.credential_headers()}

    def credential_headers(self) -> list[str]:
        """Names of the headers with a credential that came along."""
        return [name for name in self.header_names if name in CREDENTIAL_HEADERS]


@dataclass(slots=True)
class Line:
    """One billed call."""

    sequence: int
    agent: str
    model: Model
    usage: Usage
    cost_nanousd: int
    request_id: str
    received: Received
    completed: bool = False  # the whole response was handed to the peer's connection

    def to_json(self) -> dict[str, Any]:
        """The line as `GET /_sandbox/bill` shows it."""
        received = self.received
        return {
            "sequence": self.sequence,
            "agent": self.agent,
            "provider": self.model.provider,
            "model": self.model.snapshot,
            "usage": asdict(self.usage),
            "cost_nanousd": str(self.cost_nanousd),
            "completed": self.completed,
            "status": received.status,
            "request_id": self.request_id,
            "request_sequence": received.sequence,
            "body_sha256": received.body_sha256,
            "body_bytes": received.body_bytes,
            "header_names": received.header_names,
            "credential_headers": received.credential_headers(),
            "headers": {
                name: value
                for name, value in received.headers.items()
                if name.startswith("x-sandbox-")
            },
        }


@dataclass(slots=True)
class _Totals:
    calls: Counter[bool] = field(default_factory=Counter)  # by completed
    nanousd: Counter[bool] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "calls": self.calls.total(),
            "completed_calls": self.calls[True],
            "total_nanousd": str(self.nanousd.total()),
            "completed_nanousd": str(self.nanousd[True]),
        }


class Bill:
    """Every request since the last reset, and every call that is charged for."""

    def __init__(self, log_headers: Iterable[str] = ("x-*",)) -> None:
        self._log_headers = tuple(log_headers)
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everything; a call in flight then keeps its old line, which nobody sees."""
        self.requests: list[Received] = []
        self.lines: list[Line] = []

    def receive(
        self, provider: str, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes
    ) -> Received:
        """Record a request."""
        lowered = [(name.lower(), value) for name, value in headers]
        names = tuple(name for name, _ in lowered)
        values: dict[str, str] = {}
        for name, value in lowered:
            if self._is_logged(name):
                values[name] = f"{values[name]}, {value}" if name in values else value
        received = Received(
            sequence=len(self.requests) + 1,
            provider=provider,
            method=method,
            path=path,
            # Clients send the same names again and again: a million lines share a few tuples.
            header_names=self._names.setdefault(names, names),
            headers=values,
            body_sha256=sha256(body).hexdigest(),
            body_bytes=len(body),
        )
        self.requests.append(received)
        return received

    def charge(self, received: Received, call: Call, request_id: str) -> Line:
        """Bill a call, when its generation begins: a client that hangs up pays all the same."""
        line = Line(
            sequence=len(self.lines) + 1,
            agent=call.agent,
            model=call.model,
            usage=call.usage,
            cost_nanousd=call.model.cost(call.usage),
            request_id=request_id,
            received=received,
        )
        self.lines.append(line)
        return line

    def to_json(self, after: int = 0) -> dict[str, Any]:
        """Totals over everything, and the lines whose sequence is above `after`."""
        by_agent: dict[str, _Totals] = {}
        for line in self.lines:
            totals = by_agent.setdefault(line.agent, _Totals())
            totals.calls[line.completed] += 1
            totals.nanousd[line.completed] += line.cost_nanousd
        return {
            "lines": [line.to_json() for line in self.lines[after:]],
            "total_nanousd": str(sum(line.cost_nanousd for line in self.lines)),
            "by_agent": {agent: totals.to_json() for agent, totals in by_agent.items()},
        }

    def _is_logged(self, name: str) -> bool:
        return name not in CREDENTIAL_HEADERS and any(
            fnmatchcase(name, pattern) for pattern in self._log_headers
        )
