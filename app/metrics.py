"""Prometheus series: what counts them cheaply, and the one registry that shows them.

What the server does often is counted by hand, in plain lists and dictionaries of the one event loop, and read when it is
scraped: the library's own counters take a lock for every event. `docs/metrics.md` lists every series.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from app import __version__
from app.breaker_series import BreakerSeries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    Source = Callable[[], Iterable[Metric]]

    from app.breaker import Breaker

# Seconds. The targets are 2, 28 and 80 ms, so the buckets are dense around them.
LATENCY_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.028, 0.05, 0.08, 0.15, 0.5, 1.0, 2.0, 5.0)
# A store in the same rack answers in 0.2 ms; after 1.5 s (Redis) or 10 s (Postgres) it is given up. A commit of a few
# hundred entries takes about 3 ms, and whoever waits for one waits for the one before it, too. One list for all of them:
# series of one name that have other buckets cannot be added up.
STORE_BUCKETS_S: Final = (
    0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.008, 0.012, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
# Entries of one commit: 1 when idle, 1,024 at the most, beyond it only what a restart finds in the outbox.
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
# How late the event loop is. Its timers have steps of a millisecond.
LAG_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


# Methods that a route may have, and those that clients try; whatever else they make up counts as one.
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
OTHER_METHOD: Final = "other"
# Shown for each route from its first request on: of a counter that first appears with its first faults, rate() sees none of
# them, so that a short outage would leave no trace in the error rate.
FAULTS: Final = (500, 503)
_REQUESTS: Final = ("http_requests_total", "Requests answered", "counter")
_DURATIONS: Final = ("http_request_duration_seconds", "Time from request to answer", "histogram")


@cache
def _bound_texts(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*map(floatToGoString, bounds), "+Inf")


class Histogram:
    """Counts by bucket, the last one unbounded, and the sum of what was counted. For one thread."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds` are the upper bounds of the buckets, rising, each inclusive."""
        self.bounds: Final = bounds
        self.counts: Final = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def take(self, value: float, times: int = 1) -> None:
        """Count `times` observations of one value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str] = ()) -> None:
        """Show it in a family, under these values of its labels."""
        bounds = _bound_texts(self.bounds)
        family.add_metric(labels, list(zip(bounds, accumulate(self.counts), strict=True)), self.sum)

    def add(self, other: Histogram) -> None:
        """Count what another one of the same bounds has counted, too."""
        for index, count in enumerate(other.counts):
            self.counts[index] += count
        self.sum += other.sum

    def family(self, name: str, meaning: str) -> HistogramMetricFamily:
        """Return it as a family without labels."""
        family = HistogramMetricFamily(name, meaning)
        self.add_to(family)
        return family


class RoundTrips:
    """Calls to a store: how long they took, and how many failed by a fault of the store or of the way to it."""

    __slots__ = ("errors", "seconds")

    def __init__(self) -> None:
        """Count from nothing."""
        self.seconds: Final = Histogram(STORE_BUCKETS_S)
        self.errors = 0


def labelled(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    meaning: str,
    label: str,
    values: Iterable[tuple[str, float]],
) -> CounterMetricFamily | GaugeMetricFamily:
    """Return a family with one label, of its values. A counter's name is without `_total`."""
    family = kind(name, meaning, labels=(label,))
    for text, value in values:
        family.add_metric((text,), value)
    return family


class _Requests(NamedTuple):
    """Requests of one route with one status: their times, and the labels as they stand in the text."""

    labels: str
    seconds: Histogram

    def bucket_lines(self) -> Iterator[str]:
        name, labels = _DURATIONS[0], self.labels
        total = 0
        for bound, count in zip(_bound_texts(self.seconds.bounds), self.seconds.counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}",{labels}}} {total}.0'
        yield f"{name}_count{{{labels}}} {total}.0"
        yield f"{name}_sum{{{labels}}} {self.seconds.sum!r}"


def _request_labels(method: str, route: str, status: int) -> str:
    return f'method="{method}",route="{route}",status="{status}"'


def _requests_text(requests: Mapping[tuple[str, str, int], _Requests]) -> bytes:
    """Return both families of requests as text. They are most of all lines, and the library takes 10 us for each."""
    total, meaning, kind = _REQUESTS
    lines = [f"# HELP {total} {meaning}", f"# TYPE {total} {kind}"]
    lines += [f"{total}{{{one.labels}}} {sum(one.seconds.counts)}.0" for one in requests.values()]
    for method, route in dict.fromkeys((method, route) for method, route, _ in requests):
        lines += [
            f"{total}{{{_request_labels(method, route, status)}}} 0.0"
            for status in FAULTS
            if (method, route, status) not in requests
        ]
    name, meaning, kind = _DURATIONS
    lines += (f"# HELP {name} {meaning}", f"# TYPE {name} {kind}")
    for one in requests.values():
        lines += one.bucket_lines()
    return ("\n".join(lines) + "\n").encode()


class _Merged(Collector):
    """What all parts of the server show. Parts that show the same family, as every pool does, show it as one."""

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for source in self._sources:
            for family in source():
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples += family.samples
        yield from families.values()


class Metrics:
    """One registry per application, so that two servers in one process do not share counts.

    redis  the round trips of all connections to Redis
    lag    how late the event loop is
    ready  whether /ready says so
    """

    def __init__(self, revision: str = "") -> None:
        """`revision` names the source that this was built from, empty where nobody said."""
        self.registry: Final = CollectorRegistry()
        self.redis: Final = RoundTrips()
        self.lag: Final = Histogram(LAG_BUCKETS_S)
        self.ready = False
        self._revision = revision or "unknown"
        self._requests: dict[tuple[str, str, int], _Requests] = {}
        self._breakers = BreakerSeries()
        self._sources: list[Source] = [self._own, self._breakers.collect]
        self.registry.register(_Merged(self._sources))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def guard(self, breaker: Breaker) -> Breaker:
        """Export the state of a breaker before one of our stores, and return it."""
        return self._breakers.add(breaker)

    def record(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request. The route is its template, a text of ours without quotes, so that labels stay few."""
        known = self._requests.get((method, route, status))
        if known is None:
            if method not in METHODS and method != OTHER_METHOD:
                self.record(OTHER_METHOD, route, status, seconds)
                return
            known = _Requests(_request_labels(method, route, status), Histogram(LATENCY_BUCKETS_S))
            self._requests[method, route, status] = known
        latency = known.seconds
        latency.counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        latency.sum += seconds

    def add(self, source: Source) -> None:
        """Show what `source` returns at every scrape: families, each under its full name."""
        self._sources.append(source)

    def observe(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Export a number of the whole process under exactly this name; it is read at every scrape."""
        self.add(lambda: (GaugeMetricFamily(name, meaning, value=read()),))

    def text(self) -> bytes:
        """Return all series in the Prometheus text format."""
        return _requests_text(self._requests) + generate_latest(self.registry)

    def _own(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "shieldx_build_info", "1; what runs is in the labels", labels=("version", "python", "revision")
        )
        build.add_metric((__version__, platform.python_version(), self._revision), 1)
        yield build
        yield GaugeMetricFamily("shieldx_ready", "1 while /ready answers 200", int(self.ready))
        yield self.lag.family("shieldx_event_loop_lag_seconds", "How late the event loop ran what was due")
        yield self.redis.seconds.family("shieldx_redis_roundtrip_seconds", "Time of a command to Redis")
        yield CounterMetricFamily(
            "shieldx_redis_errors",
            "Commands to Redis that failed by a fault of Redis or of the way to it",
            self.redis.errors,
        )
