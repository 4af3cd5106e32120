"""A watch leaves a Postgres that fails alone for longer each time, whatever woke it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg

from app.db.postgres import open_reader
from app.db.retry import delay_ms
from app.db.watch import Watch

DEADLINE_S = 30.0


class Failing(Watch):
    """Connects, and loses each session at its first look, with a notification under way."""

    def __init__(self, database_url: str, looks_max: int) -> None:
        super().__init__("tests", "shieldx_tests", self._open, interval_s=0.0)
        self.database_url = database_url
        self.looks_s: list[float] = []
        self.done = asyncio.Event()
        self._looks_max = looks_max

    async def _open(self) -> asyncpg.Connection[Any]:
        return await open_reader(self.database_url)

    async def look(self, connection: asyncpg.Connection[Any], *, first: bool) -> None:
        del connection, first
        self.looks_s.append(time.monotonic())
        if len(self.looks_s) == self._looks_max:
            self.done.set()
        self._wake()  # as a notification does that comes while this look is under way
        raise ConnectionResetError("the session is lost")


async def test_each_session_that_sees_nothing_waits_longer_than_the_one_before(database_url: str) -> None:
    faults: list[BaseException] = []
    watch = Failing(database_url, looks_max=6)

    watch.start(faults.append)
    async with asyncio.timeout(DEADLINE_S):
        await watch.done.wait()
    await watch.stop()

    waits_s = [after - before for before, after in zip(watch.looks_s, watch.looks_s[1:], strict=False)]
    wanted_s = [delay_ms(attempt, lambda: 0.0) / 1000 for attempt in range(5)]
    assert all(waited >= wanted for waited, wanted in zip(waits_s, wanted_s, strict=True)), (waits_s, wanted_s)
    assert faults == []
