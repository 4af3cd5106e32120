"""What has to be done now and then: partitions ahead of time, and forgetting answers that nobody may ask for again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

import asyncpg

from app.db.migrate import QUARTERS_AHEAD
from app.db.retry import TRANSIENT

if TYPE_CHECKING:
    from app.credits.records import Records

log = logging.getLogger(__name__)

UPKEEP_INTERVAL_S: Final = 3_600.0  # partitions exist two quarters ahead, so an hour is early enough by far


class Upkeep:
    """Runs in every replica: each step may be done twice, or by several at once."""

    def __init__(self, records: Records) -> None:
        """`records` reaches Postgres as the server's role."""
        self._records = records
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin with a first round at once."""
        self._task = asyncio.create_task(self._run(), name="upkeep")

    async def stop(self) -> None:
        """End; an unfinished round is done again by whoever comes next."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def round(self) -> int:
        """Make partitions ahead and forget old answers; return how many partitions were made."""
        made: int = (await self._records.rows("SELECT ensure_partitions(now(), now(), $1)", QUARTERS_AHEAD))[0][0]
        await self._records.rows("DELETE FROM credit_answers WHERE at < now() - interval '25 hours'")
        if made:
            log.info("partitions made", extra={"partitions": made})
        return made

    async def _run(self) -> None:
        while True:
            try:
                await self.round()
            except (*TRANSIENT, asyncpg.PostgresError) as error:
                log.warning("upkeep waits", extra={"reason": f"{type(error).__name__}: {error}"})
            await asyncio.sleep(UPKEEP_INTERVAL_S)
