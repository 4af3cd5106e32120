"""What has to be done now and then: partitions ahead of time, rollups, the summary, tombstones, and forgetting."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

import asyncpg
import redis.exceptions

from app.actor import ActorStopped, AskTimeout, InboxFull
from app.db.founding import QUARTERS_AHEAD
from app.db.retry import TRANSIENT
from app.db.sql import query
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from app.credits.lifecycle import Lifecycle
    from app.credits.records import Records
    from app.privacy.opening import Privacy

log = logging.getLogger(__name__)

UPKEEP_INTERVAL_S: Final = 3_600.0  # partitions exist two quarters ahead, so an hour is early enough by far
FORGET_BATCH: Final = 5_000  # alerts of one statement: some 50 ms
TICK_S: Final = 2.0  # how often the replica that leads looks for what is due; a look costs nothing

# What a store that is away, or a ledger that is closed, raises: what failed is due again at the next tick.
_LATER: Final = (
    *TRANSIENT, ActorStopped, AskTimeout, InboxFull, asyncpg.PostgresError, redis.exceptions.RedisError,
)  # fmt: skip


class Upkeep:
    """Every replica makes partitions and forgets answers; the one that leads does the rest.

    Each step may be done twice, or by several at once: while the lead changes, two replicas may think that they have it.
    """

    def __init__(self, records: Records, lifecycle: Lifecycle, privacy: Privacy, leads: Callable[[], bool]) -> None:
        """`records` reaches Postgres as the server's role; `leads` tells whether this replica leads the first shard."""
        self._records = records
        self._lifecycle = lifecycle
        self._privacy = privacy
        self._leads = leads
        self._task: asyncio.Task[None] | None = None
        self._round_at_s = 0.0
        self.partitions_end: datetime | None = None  # of the last quarter that has all its partitions, once known

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin with a first round at once; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name="upkeep")

    async def stop(self) -> None:
        """End; an unfinished round is done again by whoever comes next."""
        if self._task is not None:
            await end_task(self._task)

    async def round(self) -> int:
        """Make partitions ahead, forget old answers and alerts; return how many partitions were made."""
        made: int = (await self._records.rows("SELECT ensure_partitions(now(), now(), $1)", QUARTERS_AHEAD))[0][0]
        self.partitions_end = (await self._records.rows(query("partitions_end")))[0][0]
        await self._records.rows("DELETE FROM credit_answers WHERE at < now() - interval '25 hours'")
        while (await self._records.rows("SELECT forget_alerts($1)", FORGET_BATCH))[0][0] == FORGET_BATCH:
            pass
        if made:
            log.info("partitions made", extra={"partitions": made})
        return made

    async def tick(self) -> None:
        """Do what is due now. Raises what the stores raise."""
        self._privacy.reload()
        if time.monotonic() >= self._round_at_s:
            await self.round()
            self._round_at_s = time.monotonic() + UPKEEP_INTERVAL_S
        if self._leads():
            await self._privacy.round()
            await self._lifecycle.round()

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        while True:
            try:
                await self.tick()
            except _LATER as error:
                log.warning("upkeep waits", extra={"reason": f"{type(error).__name__}: {error}"})
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return
            await asyncio.sleep(TICK_S)
