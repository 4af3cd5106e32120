"""What a pool needs while time passes: growing, shrinking, pings, and a word about connections that are kept.

Growth. More than WAITS_MANY entries had to wait since the last look, statements are as fast as usual, the breaker is
closed, and Postgres has connections to spare: ten more. A slow database would only be slower with more of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

import asyncpg

from app.breaker import BreakerState
from app.db.gate import GateTimeout
from app.db.pool import FAULTS, SIZE_MAX, Pool
from app.db.response_times import SLOW_S
from app.db.sql import query
from app.turns import end_task

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # how often the breaker and kept connections are looked at
INTERVAL_S: Final = 10.0  # in which waits are counted
WAITS_MANY: Final = 100
STEP: Final = 10
COOL_S: Final = 30.0  # between two steps: new connections must show what they do first
QUIET_S: Final = 60.0  # without a wait, and with fewer in use than a step less: one step back
PING_S: Final = 30.0
PING_TIMEOUT_S: Final = 1.5
SPARE: Final = 5  # connections that are left to administrators and to replicas that start
KEPT_S: Final = 15.0  # longer than any statement may take (STATEMENT_TIMEOUT_MS): the connection is not given back


class PoolUpkeep:
    """One task that looks after a pool. `look` does the work of one turn, at a time that the caller names."""

    def __init__(
        self,
        pool: Pool,
        *,
        size_max: int = SIZE_MAX,
        ping_timeout_s: float = PING_TIMEOUT_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`size_max` bounds what this process may use, however many Postgres could give."""
        self._pool = pool
        self._size_max = max(min(size_max, SIZE_MAX), pool.size_min)
        self._ping_timeout_s = ping_timeout_s
        self._clock_s = clock_s
        now_s = clock_s()
        self._interval_from_s = now_s
        self._waits_before = pool.gate.waits
        self._grown_s = now_s - COOL_S
        self._calm_since_s = now_s
        self._pinged_s = now_s
        self._task: asyncio.Task[None] | None = None
        self._told_demoted = False  # a write may have noticed it before, and reads go on until connections are dropped
        self.ping_s = 0.0
        self.pings_failed = 0
        self.kept = 0  # connections that were reported as kept, since the start

    def start(self) -> None:
        """Look after the pool until `stop`."""
        self._task = asyncio.create_task(self._run(), name="postgres pool upkeep")

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            await end_task(self._task)

    async def look(self) -> None:
        """Do what is due now."""
        now_s = self._clock_s()
        self._report_kept(now_s)
        if now_s - self._pinged_s >= PING_S or self._pool.state is not BreakerState.CLOSED:
            await self._ping(now_s)
        if now_s - self._interval_from_s >= INTERVAL_S:
            await self._resize(now_s)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - whatever it was, the pool has to be looked after further on
                log.warning("postgres pool upkeep failed", extra={"reason": f"{type(error).__name__}: {error}"})

    async def _ping(self, now_s: float) -> None:
        pool = self._pool
        self._pinged_s = now_s
        try:
            self.ping_s = await pool.ping(self._ping_timeout_s)
            self._told_demoted = False
        except GateTimeout:
            return  # all are busy, so the server is alive
        except (*FAULTS, asyncpg.PostgresError) as error:
            self.pings_failed += 1
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                if not self._told_demoted:
                    log.error("postgres takes no writes any more: looking for another primary")  # noqa: TRY400 - no fault of ours
                self._told_demoted = True
                await pool.drop_connections()
            else:
                log.warning("postgres does not answer a ping", extra={"reason": type(error).__name__})

    async def _resize(self, now_s: float) -> None:
        gate, times = self._pool.gate, self._pool.times
        waits, self._waits_before = gate.waits - self._waits_before, gate.waits
        self._interval_from_s = now_s
        usual = times.look() <= SLOW_S
        if waits or gate.inside > gate.limit - STEP:
            self._calm_since_s = now_s
        if waits > WAITS_MANY:
            if usual and self._pool.state is BreakerState.CLOSED and now_s - self._grown_s >= COOL_S:
                await self._grow(now_s, waits)
        elif now_s - self._calm_since_s >= QUIET_S and gate.limit > self._pool.size_min:
            gate.move(max(gate.limit - STEP, self._pool.size_min))
            self._calm_since_s = now_s
            log.info("postgres pool shrunk", extra={"limit": gate.limit})

    async def _grow(self, now_s: float, waits: int) -> None:
        gate = self._pool.gate
        async with self._pool.connection(self._ping_timeout_s) as connection:
            spare = await connection.fetchval(query("spare_connections")) - SPARE
        # Connections of this pool that may still be opened are spoken for already.
        room = spare - (gate.limit - self._pool.open_connections)
        limit = min(gate.limit + min(STEP, room), self._size_max)
        if limit > gate.limit:
            gate.move(limit)
            log.info("postgres pool grown", extra={"limit": limit, "waits": waits})
        else:
            log.warning("postgres pool cannot grow", extra={"limit": gate.limit, "waits": waits, "spare": spare})
        self._grown_s = now_s

    def _report_kept(self, now_s: float) -> None:
        for loan in self._pool.loans:
            if not loan.reported and now_s - loan.since_s > KEPT_S:
                loan.reported = True
                self.kept += 1
                task = loan.task.get_name() if loan.task else "no task"
                log.error("a connection was not given back", extra={"task": task, "seconds": round(now_s - loan.since_s)})
