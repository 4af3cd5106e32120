"""The Prometheus series of one pool, read at every scrape. Every pool of the process has them, under its own label."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from app.breaker_series import breaker_families

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from app.db.pool import Pool
    from app.db.pool_upkeep import PoolUpkeep


class PoolSeries:
    """Everything that tells whether a pool is too small, or Postgres too slow."""

    def __init__(self, name: str, pool: Pool, upkeep: PoolUpkeep | None = None) -> None:
        """`name` is the value of the label, the same in every process; `upkeep` is the pool's, if it has one."""
        self._name = name
        self._pool = pool
        self._upkeep = upkeep

    def collect(self) -> Iterator[Metric]:
        """Yield all series."""
        yield from self._gauges()
        yield from self._counters()
        seconds = HistogramMetricFamily("shieldx_postgres_roundtrip_seconds", "Time of a statement", labels=("pool",))
        self._pool.times.seconds.add_to(seconds, (self._name,))
        yield seconds
        yield from breaker_families([(f"postgres_{self._name}", self._pool.breaker)], time.monotonic())

    def _gauges(self) -> Iterator[Metric]:
        pool, gate = self._pool, self._pool.gate
        gauges: dict[str, tuple[str, float]] = {
            "db_pool_connections_active": ("Connections in use", pool.active),
            "db_pool_connections_idle": ("Connections that stand and are not in use", pool.idle),
            "db_pool_connections_limit": ("Connections that may be in use at once", gate.limit),
            "db_pool_waiting": ("Callers that wait for a connection", gate.waiting),
            "db_pool_demoted": ("1 while the server takes no writes", int(pool.demoted)),
        }
        if self._upkeep is not None:
            gauges["db_pool_ping_seconds"] = ("Time of the last ping that was answered", self._upkeep.ping_s)
        for name, (meaning, value) in gauges.items():
            gauge = GaugeMetricFamily(name, meaning, labels=("pool",))
            gauge.add_metric((self._name,), value)
            yield gauge

    def _counters(self) -> Iterator[Metric]:
        pool, gate = self._pool, self._pool.gate
        counters: dict[str, tuple[str, float]] = {
            "db_pool_waits": ("Callers that had to wait for a connection", gate.waits),
            "db_pool_wait_seconds": ("Seconds that callers have waited in all", gate.wait_s),
            "db_pool_timeouts": ("Callers that got no connection in time", gate.timeouts),
            "db_pool_acquired": ("Connections lent", pool.acquired),
            "db_pool_connects": ("Connections opened", pool.connected),
            "pg_slow_queries": ("Statements that took longer than 100 ms", pool.times.slow),
            "shieldx_postgres_errors": ("Faults of Postgres or of the way to it", pool.errors),
        }
        if self._upkeep is not None:
            counters["db_pool_kept"] = ("Connections that were not given back in time", self._upkeep.kept)
        for name, (meaning, value) in counters.items():
            counter = CounterMetricFamily(name, meaning, labels=("pool",))
            counter.add_metric((self._name,), value)
            yield counter
