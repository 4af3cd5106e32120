"""Keeps the experiments of this process equal to Postgres. A rollback on one replica is in effect on all that reach Postgres
well within a second.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from app.db.postgres import cut_off
from app.db.sql import query
from app.db.watch import Watch
from app.shadow.store import row_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    from app.shadow.catalog import Catalog
    from app.shadow.experiment import Experiment

CHANNEL: Final = "shieldx_experiments"
POLL_INTERVAL_S: Final = 0.25  # a quarter of the second within which a rollback must be in effect everywhere
LOOK_TIMEOUT_S: Final = 0.5  # a look that takes longer is on a dead session
LOAD_TIMEOUT_S: Final = 5.0  # EXPERIMENTS_MAX rows take about half a second
SLICE: Final = 100  # rows that are taken over in one turn of the event loop: about 2 ms


class ExperimentWatch(Watch):
    """Takes over experiments that others made or changed."""

    def __init__(
        self,
        catalog: Catalog,
        connect: Callable[[], Awaitable[asyncpg.Connection[Any]]],
        on_changed: Callable[[Experiment], None],
    ) -> None:
        """`connect` opens a Postgres session of the server's role; `on_changed` hears of what others changed."""
        super().__init__("experiments", CHANNEL, connect, interval_s=POLL_INTERVAL_S)
        self._catalog = catalog
        self._on_changed = on_changed

    async def look(self, connection: asyncpg.Connection[Any], *, first: bool) -> None:
        """Load what is beyond the revision that is known; that stays true over a lost session."""
        del first
        with cut_off(connection, LOOK_TIMEOUT_S):
            revision = await connection.fetchval("SELECT revision FROM shadow_revision")
        if revision != self._catalog.revision:
            await self._load(connection, revision)

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
