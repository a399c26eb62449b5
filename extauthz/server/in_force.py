"""What was in force before a reload or restart: the budgets as they were, and every org ever used.

Kept in `data_dir`, because the file says only what is to be in force from now on. Each sidecar
keeps its own, also where several share a store: each enforces what it had enforced before.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from extauthz.durable import replace_file
from extauthz.errors import OperatorError
from extauthz.policies import Budget, Outgoing, Policies, Scope, Unit
from extauthz.service.outgoing import outgoing_after
from extauthz.windows import Period, Window


class InForceError(OperatorError):
    """The record cannot be read or written; the text says what to do."""


@dataclass(frozen=True, slots=True)
class _InForce:
    orgs: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = ()
    outgoing: tuple[Outgoing, ...] = ()


def take_over(path: Path, policies: Policies, at_ms: int) -> Policies:
    """The policies of the file, with what is still in force of those before; recorded first.

    Raises:
        InForceError: the record cannot be read or written.
    """
    before = _load(path)
    now = _InForce(
        tuple(dict.fromkeys((*policies.orgs, *before.orgs))),
        policies.budgets,
        outgoing_after(before.budgets, before.outgoing, policies.budgets, at_ms),
    )
    if now != before:
        _save(path, now)
    return _with(policies, now)


def as_recorded(path: Path, policies: Policies) -> Policies:
    """The policies of the file, with what the service of this `data_dir` has recorded.

    Raises:
        InForceError: the record cannot be read.
    """
    return _with(policies, _load(path))


def _with(policies: Policies, record: _InForce) -> Policies:
    former = tuple(org for org in record.orgs if org not in policies.orgs)
    return replace(policies, outgoing=record.outgoing, former_orgs=former)


def _load(path: Path) -> _InForce:
    try:
        data = json.loads(path.read_bytes())
        return _InForce(
            tuple(map(str, data["orgs"])),
            _budgets(data["budgets"]),
            tuple(
                Outgoing(budget, int(one["until_ms"]))
                for one in data["outgoing"]
                for budget in _budgets([one["budget"]])
            ),
        )
    except FileNotFoundError:
        return _InForce()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InForceError(
            f"{path}: cannot be read ({error}); it says which budgets were in force. If you remove "
            "it, a budget whose window or time zone has been changed since counts anew at once"
        ) from error


def _budgets(found: Sequence[dict[str, Any]]) -> tuple[Budget, ...]:
    return tuple(
        Budget(
            **fields
            | {
                "scope": Scope(fields["scope"]),
                "unit": Unit(fields["unit"]),
                "window": Window(**window | {"period": Period(window["period"])}),
            }
        )
        for fields in found
        for window in [fields["window"]]
    )


def _save(path: Path, record: _InForce) -> None:
    """Replace the record; it is on disk when this returns."""
    try:
        replace_file(path, json.dumps(asdict(record)).encode())
    except OSError as error:
        raise InForceError(f"{path}: cannot be written ({error.strerror})") from error
