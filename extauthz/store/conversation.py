"""What is said on one connection: one round trip, and no reply believed that was not asked for.

Questions and answers are kept by number, so that what was answered before a failure counts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from extauthz.store.base import StoreUnavailableError
from extauthz.store.script import Call, Command

_ASKING: Command = ("ASKING",)
"""Before each command to a node of a Cluster that is just being given its slot."""


async def run_scripts(
    connection: AbstractConnection,
    place: str,
    asking: bool,  # noqa: FBT001 of a route, and never a literal
    calls: Mapping[int, Call],
    answers: dict[int, Any],
) -> None:
    """Fill in `answers` as they come: each a reply with the id that was asked for, or an error.

    A call that waits for replicas finds their number added to its reply as the last word.
    """
    await _run(connection, place, asking, calls, answers, by_text=False)
    # Those have not run: the server does not know them.
    unknown = {at: calls[at] for at in calls if isinstance(answers[at], NoScriptError)}
    if unknown:
        for at in unknown:
            del answers[at]  # from here on they may run, whatever becomes of this connection
        await _run(connection, place, asking, unknown, answers, by_text=True)


async def _run(
    connection: AbstractConnection,
    place: str,
    asking: bool,  # noqa: FBT001
    calls: Mapping[int, Call],
    answers: dict[int, Any],
    *,
    by_text: bool,
) -> None:
    packed: dict[int, bytes] = {}
    for at, call in calls.items():
        try:
            packed[at] = _packed(_spoken(call, asking=asking, by_text=by_text))
        except UnicodeEncodeError as error:  # the trouble of this call, not of those beside it
            answers[at] = error
    await connection.send_packed_command(b"".join(packed.values()))
    for at, call in ((at, calls[at]) for at in packed):
        if asking:
            await _reply(connection)
        reply = await _reply(connection)
        acknowledged = None if call.wait is None else await _reply(connection)
        if not isinstance(reply, ResponseError):
            if not isinstance(reply, list) or not reply or reply[0] != call.id:
                raise _crossed(place)
            if call.wait is not None:
                reply.append(str(acknowledged) if isinstance(acknowledged, int) else "0")
        answers[at] = reply


def _spoken(call: Call, *, asking: bool, by_text: bool) -> Iterator[Command]:
    if asking:
        yield _ASKING
    yield call.by_text() if by_text else call.by_hash()
    if call.wait is not None:
        yield call.wait.command()


async def run_reads(
    connection: AbstractConnection,
    place: str,
    asking: bool,  # noqa: FBT001 of a route, and never a literal
    commands: Mapping[int, Command],
    answers: dict[int, Any],
) -> None:
    """Run plain commands; an error reply is the answer of its own command only.

    Their replies carry no id, so a PING with a word of its own must come back as the last.
    """
    spoken: list[Command] = []
    for command in commands.values():
        spoken += [_ASKING, command] if asking else [command]
    replies = await _exchange(connection, [*spoken, ("PING", word := uuid4().hex)])
    if isinstance(replies[-1], ResponseError):
        raise replies[-1]
    if replies[-1] != word:
        raise _crossed(place)
    told = replies[1:-1:2] if asking else replies[:-1]
    answers.update(zip(commands, told, strict=True))


async def refuse_replica(connection: AbstractConnection) -> None:
    """Say hello to a server that must be a primary, on every new connection.

    Raises:
        ReadOnlyError: it is a replica. Its reads would be answered, with old balances.
    """
    await connection.on_connect()
    (reply,) = await _exchange(connection, [("INFO", "replication")])
    if isinstance(reply, ResponseError):
        raise reply
    if "role:master" not in reply.split():
        raise ReadOnlyError("it has the role of a replica")


async def _exchange(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    await connection.send_packed_command(_packed(commands))
    return [await _reply(connection) for _ in commands]


def _packed(commands: Iterable[Command]) -> bytes:
    """As the server reads them; redis-py packs in Python, which takes ten times as long."""
    # (its types know commands of one word only)
    return b"".join(pack_command(words) for words in commands)  # type: ignore[arg-type]


async def _reply(connection: AbstractConnection) -> Any:
    """One reply; an error reply is one too, and leaves the connection in step."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _crossed(place: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"the store at {place} answered another question than was asked; the connection was closed"
    )
