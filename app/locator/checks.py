"""Active checks: which replica makes which, when, and what a row of results means.

Each instance is checked by one of the replicas that live, the same one as long as it lives (rendezvous hashing); when it
goes another one takes over within 15 s. Two good results in a row make an instance passing, three bad ones critical
(the defaults of HAProxy). Times are spread by a tenth, so that instances registered together are not checked together.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final
from zlib import crc32

from app.actor import ActorStopped, InboxFull
from app.locator.probe import probe
from app.locator.record import split_field
from app.locator.target import CheckRefused, CheckTarget, http_target, tcp_target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from app.locator.instance import Check, Instance
    from app.locator.record import Record
    from app.locator.registry import Answer, Registry
    from app.locator.target import IPNetwork

RISE: Final = 2
FALL: Final = 3
RUNNING_MAX: Final = 128  # checks at once; more wait for the next second
JITTER: Final = 0.1  # of the interval, either way


class _Course:
    """How the checks of one instance go."""

    __slots__ = ("due_s", "generation", "row", "running")

    def __init__(self, generation: str, due_s: float) -> None:
        self.generation = generation
        self.due_s = due_s
        self.row = 0  # results in a row: above 0 good ones, below 0 bad ones
        self.running = False


class Checks:
    """Makes the checks that are this replica's. `tick` is called every second."""

    def __init__(
        self,
        registry: Registry,
        allowed: Sequence[IPNetwork],
        *,
        clock_s: Callable[[], float] = time.monotonic,
        check: Callable[[CheckTarget, Sequence[IPNetwork]], Awaitable[bool]] = probe,
    ) -> None:
        """`allowed` are networks that checks may reach although they are special; `check` makes one."""
        self._registry = registry
        self._directory = registry.directory
        self._allowed = tuple(allowed)
        self._clock_s = clock_s
        self._check = check
        self._courses: dict[str, _Course] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._owners: dict[str, str] = {}  # while the replicas are these
        self._replicas: tuple[str, ...] = ()
        self.made = 0
        self.failed = 0

    async def stop(self) -> None:
        """Drop the checks under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def tick(self, now_s: float) -> None:
        """Start the checks that are due, and forget instances that are gone or another replica's."""
        replicas = self._registry.replicas
        if replicas != self._replicas:
            self._replicas = replicas
            self._owners.clear()
        checked = self._directory.checked
        for field in checked:
            owner = self._owners.get(field)
            if owner is None:
                owner = self._owners[field] = owner_of(field, replicas)
            if owner == self._registry.replica:
                self._look(field, now_s)
            else:
                self._courses.pop(field, None)
        for field in self._owners.keys() - checked:
            del self._owners[field]
            self._courses.pop(field, None)

    def _look(self, field: str, now_s: float) -> None:
        record = self._directory.find(*split_field(field))
        check = None if record is None else record.instance.check
        if record is None or check is None:
            return
        course = self._courses.get(field)
        if course is None or course.generation != record.generation:
            first_s = now_s + random.random() * min(check.interval_s, 1.0)  # noqa: S311 - spread, not secret
            course = self._courses[field] = _Course(record.generation, first_s)
        if now_s >= course.due_s and not course.running and len(self._tasks) < RUNNING_MAX:
            self._begin(field, record, check, course, now_s)

    def _begin(self, field: str, record: Record, check: Check, course: _Course, now_s: float) -> None:
        course.running = True
        course.due_s = now_s + check.interval_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spread, not secret
        task = asyncio.get_running_loop().create_task(self._run(field, record, course))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, field: str, record: Record, course: _Course) -> None:
        try:
            good = await self._check(target_of(record.instance), self._allowed)
        except CheckRefused:
            good = False
        finally:
            course.running = False
        self.made += 1
        self.failed += not good
        course.row = max(course.row, 0) + 1 if good else min(course.row, 0) - 1
        found = verdict(course.row, record.check)
        if found != record.check:
            service, id_ = split_field(field)
            self._tell(service, id_, record.generation, found)

    def _tell(self, service: str, id_: str, generation: str, found: str) -> None:
        """Say what was found; if that cannot be said now, the next result says it."""

        def ignore(_answer: Answer | None, _error: Exception | None) -> None:
            """The next result repeats what did not get through."""

        try:
            self._registry.submit(self._registry.found(service, id_, generation, found), ignore)
        except (InboxFull, ActorStopped):
            return


def verdict(row: int, before: str) -> str:
    """Return what a row of results makes of an instance: it is new until the first good one, or the third bad one."""
    if row >= (1 if before == "none" else RISE):
        return "passing"
    return "critical" if row <= -FALL else before


def owner_of(field: str, replicas: Sequence[str]) -> str:
    """Return the replica that checks an instance: the highest hash of the two names wins (Thaler, Ravishankar 1996)."""
    return max(replicas, key=lambda replica: (crc32(f"{field}\0{replica}".encode()), replica))


def target_of(instance: Instance) -> CheckTarget:
    """Return what the check of an instance connects to. Raises CheckRefused."""
    check = instance.check
    if check is None:
        raise CheckRefused("The instance has no check.")
    facts = instance.facts
    if check.kind == "http":
        return http_target(check.target, facts.host, facts.port)
    return tcp_target(check.target, facts.host)
