"""The pool's Prometheus series, read at every scrape."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from app.breaker import BreakerState
from app.db.response_times import BOUNDS_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from app.db.pool import Pool
    from app.db.pool_upkeep import PoolUpkeep

STATES: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class PoolSeries(Collector):
    """Everything that tells whether the pool is too small, or Postgres too slow."""

    def __init__(self, pool: Pool, upkeep: PoolUpkeep) -> None:
        """Both belong together."""
        self._pool = pool
        self._upkeep = upkeep

    def collect(self) -> Iterator[Metric]:
        """Yield all series."""
        pool, upkeep, gate = self._pool, self._upkeep, self._pool.gate
        gauges = {
            "db_pool_connections_active": ("Connections in use", pool.active),
            "db_pool_connections_idle": ("Connections that stand and are not in use", pool.idle),
            "db_pool_connections_limit": ("Connections that may be in use at once", gate.limit),
            "db_pool_waiting": ("Callers that wait for a connection", gate.waiting),
            "db_pool_ping_seconds": ("Time of the last ping that was answered", upkeep.ping_s),
            "db_pool_breaker_state": ("0 closed, 1 half open, 2 open", STATES[pool.state]),
            "db_pool_demoted": ("1 while the server takes no writes", int(pool.demoted)),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(name, meaning, value=value)
        counters = {
            "db_pool_waits": ("Callers that had to wait for a connection", gate.waits),
            "db_pool_wait_seconds": ("Seconds that callers have waited in all", gate.wait_s),
            "db_pool_timeouts": ("Callers that got no connection in time", gate.timeouts),
            "db_pool_acquired": ("Connections lent", pool.acquired),
            "db_pool_connects": ("Connections opened", pool.connected),
            "db_pool_kept": ("Connections that were not given back in time", upkeep.kept),
            "db_pool_breaker_opened": ("Times that Postgres was given up for a moment", pool.breaker.opened),
            "pg_slow_queries": ("Statements that took longer than 100 ms", pool.times.slow),
        }
        for name, (meaning, value) in counters.items():
            yield CounterMetricFamily(name, meaning, value=value)
        family = HistogramMetricFamily("pg_query_seconds", "Time of a statement over the pool")
        bounds = [*map(floatToGoString, BOUNDS_S), "+Inf"]
        family.add_metric((), list(zip(bounds, accumulate(pool.times.counts), strict=True)), pool.times.sum_s)
        yield family
