"""Everything of shadow in one process: there from the start, open once the ledger's schema is there."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
from redis.exceptions import RedisError

from app.clock import time_text
from app.db.keys import RULES_TAG
from app.db.pool_series import PoolSeries
from app.db.pool_upkeep import PoolUpkeep
from app.db.postgres import open_pool, open_reader
from app.db.redis import RedisLink, redis_breaker
from app.db.retry import TRANSIENT, delay_ms
from app.db.sql import query
from app.db.statements import Statements
from app.db.topology import make_topology
from app.shadow.calls import ExperimentCalls
from app.shadow.catalog import Catalog
from app.shadow.checkpoint import Checkpoints
from app.shadow.counters import Counters
from app.shadow.flags import FLAGS
from app.shadow.recovery import lay
from app.shadow.rules_opening import Rules
from app.shadow.series import Counts, ShadowSeries
from app.shadow.steady import SteadyClock
from app.shadow.steward import Steward
from app.shadow.store import ExperimentStore, row_of
from app.shadow.watch import ExperimentWatch
from app.turns import end_task
from app.web.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.db.pool import Pool
    from app.metrics import Metrics
    from app.shadow.assignment import Assignment
    from app.shadow.definition import State

log = logging.getLogger(__name__)

LOAD_WAIT_S: Final = 2.0  # for a connection, at the start
POOL_SIZE: Final = 3  # connections to Postgres of shadow's own, so that it never takes one from the ledger
POOL_SIZE_MAX: Final = 10  # what it may grow to while callers wait; the ledger's may take the rest of what is to spare
OPEN_POLL_S: Final = 0.01
RESTORE_SLICE: Final = 100  # experiments whose journals are read together


class Places(NamedTuple):
    """Where the data lives, and the name of this process."""

    redis_url: str
    database_url: str
    replica: str


class _Parts(NamedTuple):
    """What is open."""

    pool: Pool
    pool_upkeep: PoolUpkeep
    counters: Counters
    catalog: Catalog
    steward: Steward
    watch: ExperimentWatch
    checkpoints: Checkpoints


class Shadow:
    """The parts, and their life.

    calls     None before all is open
    rules     rules in shadow, which open with the rest
    restored  what the start found: experiments, how many of them in Redis, laid there from Postgres, or not used yet
    """

    def __init__(self, metrics: Metrics, on_crash: Callable[[BaseException], None], watches: Watches | None = None) -> None:
        """Make nothing yet: the parts need the stores.

        on_crash  is called with a fault after which the process must not go on
        watches   those of the process, which others may watch too
        """
        self.watches: Final = watches or Watches()
        self._on_crash = on_crash
        self._task: asyncio.Task[None] | None = None
        self._parts: _Parts | None = None
        self.calls: ExperimentCalls | None = None
        self.restored: dict[str, Any] = {}
        self._restored_by_start = 0
        self.waiting_for = "the ledger"
        self.rules: Final = Rules(metrics)
        self._metrics = metrics
        self._redis = metrics.guard(redis_breaker("shadow"))
        self._rules_redis = metrics.guard(redis_breaker("rules"))
        series = ShadowSeries(
            lambda: None if self._parts is None else self._parts.catalog, self._counts,
            lambda: None if self.rules.book is None else self.rules.book.untested,
        )  # fmt: skip
        metrics.add(series.collect)

    @property
    def catalog(self) -> Catalog:
        """The experiments. Raises ConnectionError before they are loaded."""
        if self._parts is None:
            raise ConnectionError("experiments are not loaded yet")
        return self._parts.catalog

    async def assign(self, name: str, unit_id: str) -> Assignment:
        """Return what a unit gets in an experiment; see `Catalog.assign`."""
        return await self.catalog.assign(name, unit_id)

    def start(self, places: Places, ready: Callable[[], bool]) -> None:
        """Begin to open once `ready` says that the schema is there, and go on trying until it succeeds."""
        self._task = asyncio.create_task(self._open(places, ready), name="shadow opening")

    async def wait_open(self) -> None:
        """Return once calls are served."""
        while self.calls is None:
            await asyncio.sleep(OPEN_POLL_S)

    async def stop(self) -> None:
        """Finish what was accepted, save the counters, close the connections."""
        if self._task is not None:
            await end_task(self._task)
        parts, self._parts = self._parts, None
        if parts is None:
            return
        self.calls = None
        await self.rules.close()
        await parts.steward.stop()
        await parts.watch.stop()
        await asyncio.gather(*(experiment.end() for experiment in parts.catalog))
        await parts.checkpoints.stop()
        await parts.counters.close()
        await parts.pool_upkeep.stop()
        parts.pool.terminate()

    async def check(self) -> dict[str, Any]:
        """Return the state for GET /ready, with what the start found, and what was restored since.

        Raises what Redis raises when it is away.
        """
        if self.calls is None or self._parts is None:
            return {"state": "waiting", "reason": self.waiting_for}
        counters = self._parts.counters
        await counters.ping()
        later = counters.restored - self._restored_by_start
        at_ms = counters.restored_at_ms if later else None
        since = {"experiments": later, "last_at": None if at_ms is None else time_text(at_ms)}
        return {"experiments": len(self._parts.catalog), "restored": self.restored | {"since_start": since}}

    def _counts(self) -> Counts:
        if self.calls is None or self._parts is None:
            return Counts()
        return Counts(self.calls.taken, self._parts.steward.rollbacks)

    async def _open(self, places: Places, ready: Callable[[], bool]) -> None:
        while not ready():
            await asyncio.sleep(OPEN_POLL_S)
        attempt = 0
        while True:
            try:
                await self._open_parts(places)
            except (*TRANSIENT, RedisError, asyncpg.PostgresError) as error:
                self.waiting_for = f"a store: {type(error).__name__}"
                log.warning("experiments wait", extra={"reason": f"{type(error).__name__}: {error}"})
                await asyncio.sleep(delay_ms(attempt) / 1000)
                attempt += 1
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                self._on_crash(error)
                return
            else:
                return

    async def _open_parts(self, places: Places) -> None:
        pool = await open_pool(places.database_url, POOL_SIZE)
        topology = make_topology(places.redis_url, self._metrics.redis)
        counters = Counters(topology, self._redis)
        try:
            clock = SteadyClock()
            steward = Steward(lambda: catalog, clock, counters.clock, places.replica)
            catalog = Catalog(
                ExperimentStore(Statements(pool)), counters, self._on_crash, steward.notice,
                lambda: self.watches.changed(FLAGS),
            )  # fmt: skip
            self.restored = await _load(pool, catalog, counters)
            await counters.clock.begin(max((_began_ms(one.state) for one in catalog), default=0))
            self._restored_by_start = counters.restored
        except BaseException:
            await counters.close()
            pool.terminate()
            raise
        watch = ExperimentWatch(catalog, lambda: open_reader(places.database_url), steward.notice)
        checkpoints = Checkpoints(catalog, counters, steward.notice)
        upkeep = PoolUpkeep(pool, size_max=POOL_SIZE_MAX)
        upkeep.start()
        self._parts = _Parts(pool, upkeep, counters, catalog, steward, watch, checkpoints)
        self._metrics.add(PoolSeries("shadow", pool, upkeep).collect)
        for part in (steward, watch, checkpoints):
            part.start(self._on_crash)
        self.rules.open(Statements(pool), RedisLink(topology, RULES_TAG, self._rules_redis), self._on_crash)
        self.calls = ExperimentCalls(catalog, steward, clock, counters.clock)


def _began_ms(state: State) -> int:
    """Return the latest reading of the common clock that a state knows of."""
    noted = 0 if state.rollback is None else state.rollback.common_ms
    return max(noted, state.began_ms)


async def _load(pool: Pool, catalog: Catalog, counters: Counters) -> dict[str, Any]:
    """Take over all experiments from Postgres, and lay into Redis what it forgot; return what was found."""
    started_s = time.monotonic()
    rows = [row_of(row) for row in await pool.rows(LOAD_WAIT_S, query("load_experiments"), (0, None))]
    for row in rows:
        catalog.take(row)
    catalog.revision = max((row.revision for row in rows), default=0)
    places = await counters.places([row.name for row in rows])
    behind = [row for row, place in zip(rows, places, strict=True) if row.seq and (place is None or place.seq < row.seq)]
    for start in range(0, len(behind), RESTORE_SLICE):
        await lay(catalog.store, counters, behind[start : start + RESTORE_SLICE])
    unused = sum(place is None and not row.seq for row, place in zip(rows, places, strict=True))
    seconds = round(time.monotonic() - started_s, 3)
    found = {
        "experiments": len(rows), "from_redis": len(rows) - len(behind) - unused, "from_postgres": len(behind),
        "unused": unused, "seconds": seconds,
    }  # fmt: skip
    log.info("experiments loaded", extra=found)
    return found
