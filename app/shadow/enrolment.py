"""Enrols the units that Thompson sampling meets for the first time.

Somebody waits to show what a unit gets, so its one round trip stands neither behind the merge of 250 outcomes nor behind
the round trip of the unit before it: calls of `experiment_enrol.lua` have links that carry nothing else, and several are on
their way at once. What comes while all of them are goes into the next call together. Units need no order among each other:
the script gives each what it got first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg
from redis.exceptions import RedisError

from app.actor import ActorStopped, InboxFull
from app.db.retry import TRANSIENT
from app.shadow.journal import got, ungot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from app.actor import Reply
    from app.shadow.counters import Enrolled

CALLS_MAX: Final = 3  # on their way at once; at 500 units a second and 1 ms each, one unit in seventy finds all of them busy
BATCH_MAX: Final = 250  # units of one call: about 1 ms of Redis
WAITING_MAX: Final = 10_000  # units: a second at ten times the load that is promised, 3 MB
CALL_TIMEOUT_S: Final = 5.0  # of a call, with all that a Redis which forgot needs before it; the sum of many short ones


class Enrol(NamedTuple):
    """A unit, by its number, that waits to be enrolled with a version of the weights, and who is to be told what it has."""

    unit: str
    version: int
    variant: int
    reply: Reply[tuple[int, int]]


class Enrolment:
    """The units of one experiment that wait to be enrolled."""

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[str | int]], Awaitable[Enrolled]],
        follow: Callable[[int], Awaitable[None]],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        """Begin empty.

        write     enrols units, as `Counters.enrol` takes them
        follow    hears of the newest version of the weights after the units have been told what they get
        on_crash  hears of an error that no store raises
        """
        self._name = name
        self._write = write
        self._follow = follow
        self._on_crash = on_crash
        self._waiting: deque[Enrol] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls = 0  # that take what waits until nothing does; a task that has ended may still be among the tasks
        self._beginning = False  # a call that has not taken its units yet
        self._open = True

    def post(self, one: Enrol) -> None:
        """Accept a unit; its `reply` gets version and variant that it has for good, or what a store raises.

        Raises InboxFull or ActorStopped at once.
        """
        if not self._open:
            raise ActorStopped(self._name)
        if len(self._waiting) >= WAITING_MAX:
            raise InboxFull(self._name)
        self._waiting.append(one)
        if not self._beginning and self._calls < CALLS_MAX:
            self._beginning = True
            self._calls += 1
            task = asyncio.get_running_loop().create_task(self._run(), name=f"enrolment {self._name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Refuse new units and finish the accepted ones."""
        self._open = False
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self) -> None:
        self._beginning = False
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            try:
                await self._enrol(batch)
            except Exception as error:  # noqa: BLE001 - whatever broke, the process ends and starts clean
                self._open = False
                for one in (*batch, *self._waiting):
                    one.reply(None, ActorStopped(self._name))
                self._waiting.clear()
                self._on_crash(error)
        self._calls -= 1

    async def _enrol(self, batch: list[Enrol]) -> None:
        units: list[str | int] = []
        for one in batch:
            units += (one.unit, got(one.version, one.variant), one.variant)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                found = await self._write(units)
        except (*TRANSIENT, RedisError, asyncpg.PostgresError) as error:
            for one in batch:
                one.reply(None, error)
            return
        for one, number in zip(batch, found.given, strict=True):
            one.reply(ungot(number), None)
        await self._follow(found.version)
