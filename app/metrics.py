"""Every Prometheus series of the server: name, labels, unit and one line of meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds. The targets are 2, 28 and 80 ms, so the buckets are dense around them.
LATENCY_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.028, 0.05, 0.08, 0.15, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """One registry per application, so that two servers in one process do not share counts."""

    def __init__(self) -> None:
        """Register the series."""
        self.registry: Final = CollectorRegistry()
        self._requests = Histogram(
            "shieldx_http_request_seconds", "Time from request to answer", ("method", "route", "status"),
            buckets=LATENCY_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self._gauges: dict[str, Gauge] = {}
        self._children: dict[tuple[str, str, int], Histogram] = {}

    def record(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request. The route is the template, so that labels stay few."""
        child = self._children.get((method, route, status))
        if child is None:
            child = self._requests.labels(method, route, str(status))
            self._children[method, route, status] = child
        child.observe(seconds)

    def watch(self, name: str, meaning: str, shard: int, read: Callable[[], float]) -> None:
        """Export a number of a shard that is read at every scrape."""
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = Gauge(f"shieldx_{name}", meaning, ("shard",), registry=self.registry)
            self._gauges[name] = gauge
        gauge.labels(str(shard)).set_function(read)

    def text(self) -> bytes:
        """Return all series in the Prometheus text format."""
        return generate_latest(self.registry)
