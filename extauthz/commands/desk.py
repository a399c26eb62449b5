"""What every command on the store needs: the config, the store, and what the operator wrote."""

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from extauthz.archive import Archive
from extauthz.config import Config, load, policies_of
from extauthz.errors import OperatorError
from extauthz.ids import uuid7
from extauthz.ledger import (
    CLOCK_SKEW_MS_MAX,
    Applied,
    Change,
    ClockSkewError,
    Override,
    Overrides,
)
from extauthz.money import AMOUNT_MAX, AmountError, format_usd, parse_usd
from extauthz.policies import Budget, Policies, Unit
from extauthz.server.archives import archives_of, expect_books
from extauthz.server.data_dir import DataDir
from extauthz.server.in_force import as_recorded
from extauthz.server.store_url import store_url
from extauthz.service.lines import NEVER_MS
from extauthz.service.rules import Clock, system_clock
from extauthz.store.base import StoreError, StoreUnavailableError
from extauthz.store.redis import RedisStore

INSTANT_MS_MAX = 253_370_764_800_000
"""The year 9999 begins: what comes after it has no date in every time zone."""

_COMMAND_TIMEOUT_S = 5.0
_TRIES = 3


class CommandError(OperatorError):
    """A command cannot be carried out; the text says why and what to write instead."""


@dataclass(slots=True)
class Desk:
    """One command's view: the policies of the file, the store with its archives, and the time."""

    policies: Policies
    store: RedisStore
    clock: Clock
    archive_of: Callable[[str], Archive]

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Those of the file, and those that are in force until their window ends."""
        now_ms = self.clock()
        outgoing = (one.budget for one in self.policies.outgoing if now_ms < one.until_ms)
        return (*self.policies.budgets, *outgoing)

    async def overrides(self) -> Overrides:
        """What holds now."""
        (org,) = self.policies.orgs
        return await self.store.overrides(org, self.clock())

    async def apply(
        self,
        change: Change,
        target: str,
        *,
        id_: str | None,
        amount: int = 0,
        until_ms: int | None = None,
        key_hash: str = "",
    ) -> str:
        """Carry a change out, once; how it was answered, in a sentence.

        Raises:
            CommandError: the id was used for another change, or nobody knows what became of it.
        """
        (org,) = self.policies.orgs
        at_ms = self.clock()
        command = Override(
            id_ or uuid7(at_ms),
            org,
            at_ms,
            change,
            target,
            # As long as what it changes may last, and as long as anybody may still repeat it.
            (at_ms + NEVER_MS if until_ms is None else until_ms) + self.policies.settle_horizon_ms,
            amount,
            until_ms,
            key_hash=key_hash,
        )
        try:
            applied = await self._carried_out(command)
        except StoreUnavailableError as error:
            raise CommandError(
                f"{error}\nWhether it was carried out is not known. To be sure, repeat the command "
                f"with --id {command.id}: it is carried out once."
            ) from error
        if applied is Applied.CONFLICT:
            raise CommandError(f"--id {command.id} was used for another change: nothing was done")
        if applied is Applied.DUPLICATE:
            return f"was done before (id {command.id}): nothing was changed"
        return f"done, in force at the next call (id {command.id})"

    async def _carried_out(self, command: Override) -> Applied:
        """Told again where the store has let it wait: a frozen one refuses what is old by then.

        Raises:
            ClockSkewError: it answers at once, and refuses: the clocks differ.
            StoreUnavailableError: it lets each command wait.
        """
        for _ in range(_TRIES):
            command = replace(command, at_ms=self.clock())
            try:
                return await self.store.override(command)
            except ClockSkewError:  # it has changed nothing
                if self.clock() - command.at_ms < CLOCK_SKEW_MS_MAX // 2:
                    raise
        raise StoreUnavailableError("the store does not answer in time: it is frozen or overloaded")


Work = Callable[[Desk, argparse.Namespace], Coroutine[None, None, None]]


def run_at_desk(work: Work) -> Callable[[argparse.Namespace], None]:
    """A command's `run`: reads the config, opens the store, and closes it whatever happens."""

    def run(options: argparse.Namespace) -> None:
        asyncio.run(_run(work, options, load(options.config)))

    return run


async def _run(work: Work, options: argparse.Namespace, config: Config) -> None:
    policies = as_recorded(DataDir(config.data_dir).in_force, policies_of(config))
    store = RedisStore.from_url(
        store_url(config),
        command_timeout_s=_COMMAND_TIMEOUT_S,
        wait_replicas=config.store.wait_replicas,
    )
    archive_of = archives_of(config)
    expect_books(store, config, archive_of, policies.all_orgs)
    try:
        await work(Desk(policies, store, system_clock, archive_of), options)
    except StoreUnavailableError as error:
        raise StoreError(f"{error} (the embedded store runs with 'extauthz up')") from error
    except ClockSkewError as error:
        raise CommandError(f"{error}: set this machine's clock") from error
    except ValueError as error:  # of a command that says what cannot be
        raise CommandError(str(error)) from error
    finally:
        await store.close()


def with_config(parser: argparse.ArgumentParser) -> None:
    """`-c FILE`, as for every command."""
    parser.add_argument("-c", "--config", type=Path, default=Path("extauthz.yaml"), metavar="FILE")


def with_id(parser: argparse.ArgumentParser) -> None:
    """`--id`, for whoever may have to repeat a command."""
    parser.add_argument(
        "--id", metavar="ID", help="a name for this change: repeated with it, it is done once"
    )


def with_until(parser: argparse.ArgumentParser) -> None:
    """`--until`, an instant at which the change ends by itself."""
    parser.add_argument(
        "--until", metavar="TIME", help="when it ends by itself, such as 2026-12-01T00:00Z"
    )


def until_of(text: str | None, at_ms: int) -> int | None:
    """An instant as it is written, in epoch milliseconds.

    Raises:
        CommandError: it is none, has no time zone, or is over.
    """
    if text is None:
        return None
    try:
        end = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f"--until {text}: write a time such as 2026-12-01T00:00Z") from None
    if end.tzinfo is None:
        raise CommandError(f"--until {text}: write its time zone too, such as {text}Z for UTC")
    end_ms = int(end.timestamp() * 1000)
    if end_ms <= at_ms:
        raise CommandError(f"--until {text}: that is over")
    if end_ms > INSTANT_MS_MAX:
        raise CommandError(f"--until {text}: leave it out, for what has no end")
    return end_ms


def amount_of(text: str, unit: Unit) -> int:
    """An amount in a budget's unit, as the ledger counts it.

    Raises:
        CommandError: it is none.
    """
    if unit is Unit.USD:
        try:
            return parse_usd(text)
        except AmountError as error:
            raise CommandError(str(error)) from error
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal(-1)
    if not (number.is_finite() and 0 <= number <= AMOUNT_MAX and number == int(number)):
        raise CommandError(f"{text}: a number of {unit.value} is a whole number below 2^52")
    return int(number)


def shown(amount: int, unit: Unit) -> str:
    """An amount for people: `25.00 USD`, `2000 requests`."""
    return f"{format_usd(amount)} USD" if unit is Unit.USD else f"{amount} {unit.value}"


def instant(at_ms: int) -> str:
    """`2026-12-01T00:00:00Z`."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
