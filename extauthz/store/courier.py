"""Brings commands to where their org is, within one deadline, and answers back.

Every delivery runs in a task of its own that nobody cancels but its deadline; a connection that was
cut off so is closed. A command is sent again only if its first copy was certainly not executed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from itertools import count
from typing import Any, TypeVar

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError

from extauthz.store.base import StoreError, StoreUnavailableError
from extauthz.store.connections import NotReachedError
from extauthz.store.conversation import run_reads, run_scripts
from extauthz.store.failures import unavailable
from extauthz.store.script import Call, Command
from extauthz.store.topology import Route, Topology

_T = TypeVar("_T")
_Q = TypeVar("_Q")
_PAUSE_S, _PAUSE_S_MAX = 0.01, 0.05


_Talk = Callable[[AbstractConnection, str, bool, Mapping[int, _Q], dict[int, Any]], Awaitable[None]]
"""As in `conversation`: on which connection, where, `asking` or not, the questions, the answers."""


_UNDER_WAY: ContextVar["Courier | None"] = ContextVar("_UNDER_WAY", default=None)
"""Whose own task this is, or is a part of."""


class Courier:
    """Delivers to the servers of one topology."""

    def __init__(self, topology: Topology, *, command_timeout_s: float) -> None:
        self.topology = topology
        self._timeout_s = command_timeout_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    async def run(self, calls: Sequence[Call]) -> list[list[str] | StoreError]:
        """Run scripts: for each its reply, or why there is none to be trusted."""
        return await self._deliver(run_scripts, calls, [call.org for call in calls])

    async def run_one(self, call: Call) -> list[str] | Exception:
        """As `run_together`, of one."""
        return (await self.run_together([call]))[0]

    async def run_together(self, calls: Sequence[Call]) -> Sequence[list[str] | Exception]:
        """Run scripts on the connection that all share, where there is one.

        Cancelling the caller stops the waiting, not the scripts.
        """
        first = calls[0] if calls else None
        # (WAIT stops its connection: whatever stood behind it would wait as well)
        if first is None or self._is_closed or any(call.wait is not None for call in calls):
            return await self.run(calls)
        route = self.topology.known_route(first.org)
        lane = None if route is None else route.connections.lane
        if route is None or lane is None or any(call.org != first.org for call in calls):
            return await self.run(calls)
        asked: list[asyncio.Future[Any] | UnicodeEncodeError] = []
        for call in calls:
            try:
                asked.append(lane.ask(call))
            except UnicodeEncodeError as error:  # the trouble of this call, not of those beside it
                asked.append(error)
        answers: list[list[str] | Exception] = []
        for call, one in zip(calls, asked, strict=True):
            if isinstance(one, UnicodeEncodeError):
                answers.append(one)
            else:
                answers.append(await self._answer(call, route, await one))
        return answers

    async def _answer(self, call: Call, route: Route, reply: Any) -> list[str] | Exception:
        """What the lane has brought; where it proves that nothing has run, ask another way."""
        if isinstance(reply, NoScriptError):
            return (await self.run([call]))[0]
        if isinstance(reply, ResponseError):
            return await self._run_elsewhere(call, route, reply)
        if isinstance(reply, StoreError):
            self.topology.distrust(route.connections)
        answer: list[str] | Exception = reply
        return answer

    async def _run_elsewhere(
        self, call: Call, failed: Route, error: ResponseError
    ) -> list[str] | Exception:
        """Run a script again where a refusal proves that it has not run, and may run elsewhere."""

        async def work() -> list[str] | Exception:
            try:
                async with asyncio.timeout(self._timeout_s):
                    if await self.topology.next_route(call.org, failed, error) is None:
                        return unavailable(self.topology.place, error)
            except StoreError as unreachable:
                return unreachable
            except TimeoutError:
                return unavailable(self.topology.place, error)
            return (await self.run([call]))[0]

        return await self.in_own_task(work)

    async def read(self, org: str, *commands: Command) -> list[Any]:
        """Run plain commands on an org's keys: all replies, or a `StoreError`."""
        replies = await self._deliver(run_reads, commands, [org] * len(commands))
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
        return replies

    async def in_own_task(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Cancelling the caller stops the waiting, not the work; nor does `close`."""
        if _UNDER_WAY.get() is self:
            return await work()  # a part of it
        if self._is_closed:
            raise self._closed()

        async def run() -> _T:
            _UNDER_WAY.set(self)
            return await work()

        return await asyncio.shield(self._start(run()))

    async def close(self) -> None:
        """Refuse new deliveries, wait for those under way, then close the connections."""
        self._is_closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self.topology.close()

    def _start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _closed(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the store at {self.topology.place} was closed by this process"
        )

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if its caller has left

    async def _deliver(
        self, talk: _Talk[_Q], questions: Sequence[_Q], orgs: Sequence[str]
    ) -> list[Any]:
        answers: dict[int, Any] = {}
        numbered = dict(enumerate(questions))

        async def work() -> None:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._follow(talk, numbered, orgs, answers)
            except TimeoutError:
                return  # what has no answer by now gets none

        if questions:
            await self.in_own_task(work)
        return [self._final(answers.get(at)) for at in numbered]

    async def _follow(
        self,
        talk: _Talk[_Q],
        questions: Mapping[int, _Q],
        orgs: Sequence[str],
        answers: dict[int, Any],
    ) -> None:
        """Ask, and ask again wherever an answer proves that it has to be asked elsewhere."""
        routes: dict[int, Route] = {}
        for at in questions:
            await self._note(routes, answers, at, self.topology.route(orgs[at]))
        for hop in count():
            await self._ask(talk, questions, routes, answers)
            failed = {at: route for at, route in routes.items() if _may_ask_again(answers[at])}
            routes = {}
            for at, route in failed.items():
                again = self.topology.next_route(orgs[at], route, answers[at])
                await self._note(routes, answers, at, again)
            if not routes:
                return
            await asyncio.sleep(min(hop * _PAUSE_S, _PAUSE_S_MAX))

    async def _note(
        self,
        routes: dict[int, Route],
        answers: dict[int, Any],
        at: int,
        found: Awaitable[Route | None],
    ) -> None:
        try:
            route = await found
        except StoreError as error:
            answers[at] = error
            return
        if route is not None:
            routes[at] = route

    async def _ask(
        self,
        talk: _Talk[_Q],
        questions: Mapping[int, _Q],
        routes: Mapping[int, Route],
        answers: dict[int, Any],
    ) -> None:
        """One round trip to each server that has a question."""
        by_route: dict[Route, dict[int, _Q]] = {}
        for at, route in routes.items():
            by_route.setdefault(route, {})[at] = questions[at]
        if len(by_route) == 1:
            ((route, asked),) = by_route.items()
            await self._exchange(talk, route, asked, answers)
            return
        async with asyncio.TaskGroup() as group:
            for route, asked in by_route.items():
                group.create_task(self._exchange(talk, route, asked, answers))

    async def _exchange(
        self, talk: _Talk[_Q], route: Route, asked: Mapping[int, _Q], answers: dict[int, Any]
    ) -> None:
        place, error = route.connections.place, None
        for at in asked:
            answers.pop(at, None)  # what another server said before
        try:
            await route.connections.use(
                lambda connection: talk(connection, place, route.asking, asked, answers)
            )
        except asyncio.CancelledError:
            self.topology.distrust(route.connections)
            raise
        except StoreUnavailableError as failure:  # not reached, or its reply was not ours
            error = failure
        except (RedisError, OSError) as failure:
            error = unavailable(place, failure)
        if error is not None:
            self.topology.distrust(route.connections)
            for at in asked:
                answers.setdefault(at, error)

    def _final(self, answer: Any) -> Any:
        if answer is None:
            return StoreUnavailableError(
                f"the store at {self.topology.place} did not answer within {self._timeout_s:g} s"
            )
        if isinstance(answer, RedisError):
            return unavailable(self.topology.place, answer)
        return answer


def _may_ask_again(answer: Any) -> bool:
    return isinstance(answer, RedisError | NotReachedError)
