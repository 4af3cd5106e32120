"""Every Prometheus series of the server: name, labels, unit and one line of meaning."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from app.breaker_series import BreakerSeries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.breaker import Breaker

# Seconds. The targets are 2, 28 and 80 ms, so the buckets are dense around them.
LATENCY_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.028, 0.05, 0.08, 0.15, 0.5, 1.0, 2.0, 5.0)


class _Latency:
    """Counts by bucket, the last one unbounded, and the sum of seconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.sum_s = 0.0


class _Requests(Collector):
    """The request histogram. Counted by hand because the library's takes a lock and a loop for every request."""

    def __init__(self, latencies: dict[tuple[str, str, int], _Latency]) -> None:
        self._latencies = latencies

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(
            "shieldx_http_request_seconds", "Time from request to answer", labels=("method", "route", "status")
        )
        bounds = [*map(floatToGoString, LATENCY_BUCKETS_S), "+Inf"]
        for (method, route, status), latency in self._latencies.items():
            buckets = list(zip(bounds, accumulate(latency.counts), strict=True))
            family.add_metric((method, route, str(status)), buckets, latency.sum_s)
        yield family


class Metrics:
    """One registry per application, so that two servers in one process do not share counts."""

    def __init__(self) -> None:
        """Register the series."""
        self.registry: Final = CollectorRegistry()
        self._latencies: dict[tuple[str, str, int], _Latency] = {}
        self.registry.register(_Requests(self._latencies))
        self._gauges: dict[str, Gauge] = {}
        self._breakers = BreakerSeries()
        self.registry.register(self._breakers)

    def guard(self, breaker: Breaker) -> Breaker:
        """Export the state of a breaker before one of our stores, and return it."""
        return self._breakers.add(breaker)

    def record(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request. The route is the template, so that labels stay few."""
        latency = self._latencies.get((method, route, status))
        if latency is None:
            latency = self._latencies[method, route, status] = _Latency()
        latency.counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        latency.sum_s += seconds

    def watch(self, name: str, meaning: str, shard: int, read: Callable[[], float]) -> None:
        """Export a number of a shard that is read at every scrape."""
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = Gauge(f"shieldx_{name}", meaning, ("shard",), registry=self.registry)
            self._gauges[name] = gauge
        gauge.labels(str(shard)).set_function(read)

    def observe(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Export a number of the whole process under exactly this name; it is read at every scrape."""
        Gauge(name, meaning, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """Return all series in the Prometheus text format."""
        return generate_latest(self.registry)
