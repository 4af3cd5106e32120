"""Keeps the experiments of this process equal to Postgres: one session that listens, and asks four times a second besides.

A notification may be lost with the session that it was sent to. With the question, a rollback on one replica is in effect
on all that reach Postgres well within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from app.db.postgres import cut_off
from app.db.retry import TRANSIENT, delay_ms
from app.db.sql import query
from app.shadow.store import row_of
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.shadow.catalog import Catalog
    from app.shadow.experiment import Experiment

log = logging.getLogger(__name__)

CHANNEL: Final = "shieldx_experiments"
POLL_INTERVAL_S: Final = 0.25  # a quarter of the second within which a rollback must be in effect everywhere
LOOK_TIMEOUT_S: Final = 0.5  # a look that takes longer is on a dead session
LOAD_TIMEOUT_S: Final = 5.0  # EXPERIMENTS_MAX rows take about half a second
SLICE: Final = 100  # rows that are taken over in one turn of the event loop: about 2 ms


class ExperimentWatch:
    """The loop described above, as one task."""

    def __init__(
        self,
        catalog: Catalog,
        connect: Callable[[], Awaitable[asyncpg.Connection[Any]]],
        on_changed: Callable[[Experiment], None],
    ) -> None:
        """`connect` opens a Postgres session of the server's role; `on_changed` hears of what others changed."""
        self._catalog = catalog
        self._connect = connect
        self._on_changed = on_changed
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to watch; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name="experiment watch")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            await end_task(self._task)

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        failures = 0
        while True:
            try:
                connection = await self._connect()
                failures = 0
                await self._session(connection)
            except (*TRANSIENT, asyncpg.PostgresError) as error:
                log.warning("experiments not confirmed", extra={"reason": f"{type(error).__name__}: {error}"})
                await asyncio.sleep(delay_ms(failures) / 1000)
                failures += 1
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return

    async def _session(self, connection: asyncpg.Connection[Any]) -> None:
        try:
            with cut_off(connection, LOOK_TIMEOUT_S):
                await connection.add_listener(CHANNEL, self._wake)
            while True:
                self._woken.clear()
                with cut_off(connection, LOOK_TIMEOUT_S):
                    revision = await connection.fetchval("SELECT revision FROM shadow_revision")
                if revision != self._catalog.revision:
                    await self._load(connection, revision)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_INTERVAL_S):
                        await self._woken.wait()
        finally:
            connection.terminate()

    def _wake(self, *_notification: object) -> None:
        self._woken.set()

    async def _load(self, connection: asyncpg.Connection[Any], revision: int) -> None:
        with cut_off(connection, LOAD_TIMEOUT_S):
            rows = await connection.fetch(query("load_experiments"), self._catalog.revision, None)
        for number, row in enumerate(rows):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            known = self._catalog.get(row["name"])
            if known is None or known.revision < row["revision"]:
                self._on_changed(self._catalog.take(row_of(row)))
        self._catalog.revision = revision
