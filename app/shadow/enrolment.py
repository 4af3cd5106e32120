"""Enrols the units that Thompson sampling meets for the first time: an actor of its own beside that of the outcomes.

Somebody waits to show what the unit gets, so its one round trip must not stand behind the merge of 250 outcomes. All units
that wait go into one call of `experiment_enrol.lua`, over links that carry nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg
from redis.exceptions import RedisError

from app.actor import Actor, Ask
from app.db.retry import TRANSIENT
from app.shadow.journal import got, ungot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from app.shadow.counters import Enrolled

BATCH_MAX: Final = 250  # units of one script call: about 1 ms of Redis
INBOX_MAX: Final = 10_000  # units that wait: a second at ten times the load that is promised, 3 MB
ASK_TIMEOUT_S: Final = 5.0


class Enrol(Ask[tuple[int, int]]):
    """Enrol a unit with a version of the weights; the answer is version and variant that it has for good."""

    __slots__ = ("unit", "variant", "version")

    def __init__(self, unit: str, version: int, variant: int) -> None:
        """`unit` is its number."""
        super().__init__()
        self.unit = unit
        self.version = version
        self.variant = variant


class Enrolment(Actor[Enrol]):
    """The units of one experiment that wait to be enrolled."""

    def __init__(
        self,
        experiment: str,
        write: Callable[[Sequence[str | int]], Awaitable[Enrolled]],
        follow: Callable[[int], Awaitable[None]],
    ) -> None:
        """Begin empty.

        write   enrols units, as `Counters.enrol` takes them
        follow  hears of the newest version of the weights after the units have been told what they get
        """
        super().__init__(
            inbox_max=INBOX_MAX, batch_max=BATCH_MAX, ask_timeout_s=ASK_TIMEOUT_S, name=f"enrolment {experiment}"
        )
        self._write = write
        self._follow = follow

    async def receive(self, batch: list[Enrol]) -> None:
        """Enrol a batch with one script call, then answer."""
        units: list[str | int] = []
        for message in batch:
            units += (message.unit, got(message.version, message.variant), message.variant)
        try:
            found = await self._write(units)
        except (*TRANSIENT, RedisError, asyncpg.PostgresError) as error:
            for message in batch:
                message.fail(error)
            return
        for message, one in zip(batch, found.given, strict=True):
            message.answer(ungot(one))
        await self._follow(found.version)
