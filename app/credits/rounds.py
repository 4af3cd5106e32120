"""Work that is done now and then, each kind in a task of its own: an outage of a store only postpones it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from app.db.retry import TRANSIENT
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)


class Round(NamedTuple):
    """Something to do every `interval_s`, beginning at once; `work` does it once."""

    name: str
    work: Callable[[], Awaitable[object]]
    interval_s: float


class Rounds:
    """Runs them until it is stopped. A fault that is no outage is a crash."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        """Each round must be able to be cut off at any await."""
        self._rounds = rounds
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(_repeat(one, on_crash), name=one.name) for one in self._rounds]

    async def stop(self) -> None:
        """End; whatever was under way is done again by whoever comes next."""
        await asyncio.gather(*map(end_task, self._tasks))


async def _repeat(one: Round, on_crash: Callable[[BaseException], None]) -> None:
    while True:
        try:
            await one.work()
        except (*TRANSIENT, asyncpg.PostgresError) as error:
            log.warning("%s waits", one.name, extra={"reason": f"{type(error).__name__}: {error}"})
        except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
            on_crash(error)
            return
        await asyncio.sleep(one.interval_s)
