"""The life of rows in Postgres: rollups of usage, the summary of balances, partitions, the archive.

Every replica runs the same jobs; each job does nothing where another replica has just done it, and may be cut off anywhere.
Time comes from an injected clock.
"""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from app.clock import time_of
from app.db.founding import QUARTERS_AHEAD
from app.db.postgres import open_transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from app.db.pool import Pool

log = logging.getLogger(__name__)

SUMMARY_INTERVAL_S: Final = 300  # how old the summary of balances may be
# Readers of the summary wait for a refresh, so it may take this part of the time at most.
SUMMARY_SHARE: Final = 0.05
# Entries that the rollups lack are read one by one, 50 ms for a tenant with 5,000/s; but entries of a tenant that are rolled
# together cost one row.
ROLL_INTERVAL_S: Final = 10
PARTITIONS_INTERVAL_S: Final = 3_600
ARCHIVE_INTERVAL_S: Final = 86_400
NEGATIVES_INTERVAL_S: Final = 15  # how old the number of accounts below zero may be
# The count reads every account, about 0.2 s for a million: it may take this part of the time at most.
NEGATIVES_SHARE: Final = 0.01
ROLL_BATCH: Final = 20_000  # entries of one transaction, about 50 ms; the row lock of a bucket is held no longer
ROLL_ROUNDS_MAX: Final = 50  # a million entries of a shard in one go; the next go takes the rest
JOB_TIMEOUT_S: Final = 120  # archiving a quarter copies the hashes of all its entries
WAIT_S: Final = 5.0  # for a free connection; requests come first


class Lifecycle:
    """The jobs, each run when it is due."""

    def __init__(
        self,
        pool: Pool,
        shards: Sequence[int],
        clock_ms: Callable[[], int],
        archive_after_days: int | None = None,
    ) -> None:
        """`pool` is one of the server's role. Without `archive_after_days` nothing is archived."""
        self._pool = pool
        self._shards = shards
        self._clock_ms = clock_ms
        self._archive_after_days = archive_after_days
        self._due_ms: dict[str, int] = {}
        self.negative_balances = 0  # accounts, as of the last count

    async def round(self) -> None:
        """Run what is due. Raises asyncpg's errors: what failed is due again at the next round."""
        if self._is_due("usage"):
            await self.roll_usage()
            self._done("usage", ROLL_INTERVAL_S)
        if self._is_due("summary"):
            started_s = time.monotonic()
            await self.refresh_summary()
            # The database knows when it was done last, whoever did it; asking costs little.
            self._done("summary", max(SUMMARY_INTERVAL_S // 10, round((time.monotonic() - started_s) / SUMMARY_SHARE)))
        if self._is_due("negatives"):
            took_s = await self.count_negatives()
            self._done("negatives", max(NEGATIVES_INTERVAL_S, round(took_s / NEGATIVES_SHARE)))
        if self._is_due("partitions"):
            await self.check_partitions()
            self._done("partitions", PARTITIONS_INTERVAL_S)
        if self._archive_after_days is not None and self._is_due("archive"):
            await self.archive(self._archive_after_days)
            self._done("archive", ARCHIVE_INTERVAL_S)

    async def roll_usage(self, batch: int = ROLL_BATCH) -> int:
        """Bring the rollups of usage up to the durable heads; return how many entries were added."""
        added = 0
        for shard in self._shards:
            for _ in range(ROLL_ROUNDS_MAX):
                async with self._session() as connection:
                    count = await connection.fetchval("SELECT roll_usage($1, $2)", shard, batch)
                added += count
                if count < batch:
                    break
        return added

    async def refresh_summary(self, interval_s: int = SUMMARY_INTERVAL_S) -> bool:
        """Refresh `credit_balances_summary` when it is older than the interval; return whether this replica did.

        Returns False, too, when somebody reads it for so long that the lock cannot be had.
        """
        try:
            async with self._session() as connection:
                done: bool = await connection.fetchval(
                    "SELECT refresh_balances_summary($1, $2)", time_of(self._clock_ms()), timedelta(seconds=interval_s)
                )
        except asyncpg.LockNotAvailableError:
            log.info("the summary of balances waits for its readers")
            return False
        return done

    async def count_negatives(self) -> float:
        """Count the accounts whose balance is below zero, of which there must be none; return how long it took, seconds."""
        started_s = time.monotonic()
        async with self._session() as connection:
            self.negative_balances = await connection.fetchval("SELECT count(*) FROM credit_accounts WHERE balance < 0")
        if self.negative_balances:
            log.critical("accounts below zero", extra={"accounts": self.negative_balances})
        return time.monotonic() - started_s

    async def check_partitions(self) -> list[str]:
        """Make the partitions of the quarters to come and return what is wrong with all of them; each is logged."""
        now = time_of(self._clock_ms())
        async with self._session() as connection:
            await connection.execute("SELECT ensure_partitions($1, $1, $2)", now, QUARTERS_AHEAD)
            faults = [row[0] for row in await connection.fetch("SELECT partition_faults($1, $2)", now, QUARTERS_AHEAD)]
        for fault in faults:
            log.error("partition fault", extra={"fault": fault})
        return faults

    async def archive(self, days: int) -> int:
        """Archive the quarters that ended more than `days` ago; return how many entries it were.

        Returns 0 without having changed anything when the tables are too busy for the lock.
        """
        try:
            async with self._session() as connection:
                archived: int = await connection.fetchval(
                    "SELECT cleanup_old_transactions($1, $2)", days, time_of(self._clock_ms())
                )
        except asyncpg.LockNotAvailableError:
            log.info("archiving waits for a quieter moment")
            return 0
        if archived:
            log.info("entries archived", extra={"entries": archived})
        return archived

    def _is_due(self, job: str) -> bool:
        return self._clock_ms() >= self._due_ms.get(job, 0)

    def _done(self, job: str, interval_s: int) -> None:
        self._due_ms[job] = self._clock_ms() + interval_s * 1000

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        """A transaction with more time than a request has."""
        async with open_transaction(self._pool, WAIT_S, JOB_TIMEOUT_S + WAIT_S) as connection:
            await connection.execute(f"SET LOCAL statement_timeout = '{JOB_TIMEOUT_S}s'")
            yield connection
