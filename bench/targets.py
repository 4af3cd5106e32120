"""What the project promises, and whether a run met it."""

from collections.abc import Callable, Iterable
from statistics import median
from typing import Final, NamedTuple

import msgspec

from bench.rounds import Measured, Series

MIB: Final = 1 << 20


class Spread(msgspec.Struct, frozen=True):
    """Median, lowest and highest of the rounds."""

    median: float
    low: float
    high: float


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One target against what was measured; `margin` is the share it was met by, negative if missed."""

    target: str
    required: str
    measured: Spread
    unit: str
    connections: int
    met: bool
    margin: float


def spread(values: Iterable[float]) -> Spread:
    """Summarise one figure over the rounds; there is at least one."""
    listed = list(values)
    return Spread(median(listed), min(listed), max(listed))


def ratios(first: Series, second: Series) -> list[float]:
    """Operations a second of `first` over those of `second`, round by round.

    The two were measured one after the other in every round, so what slowed the machine slowed both.
    A round in which the second did nothing counts as infinity.
    """
    return [
        one.load.operations_per_s / other.load.operations_per_s if other.load.operations_per_s else float("inf")
        for one, other in zip(first.rounds, second.rounds, strict=True)
    ]


class Found:
    """Lookup in what was measured."""

    def __init__(self, series: Iterable[Series]) -> None:
        """Index by scenario and contestant."""
        self._series: dict[tuple[str, str], list[Series]] = {}
        for one in series:
            self._series.setdefault((one.scenario, one.contestant), []).append(one)

    def best(self, scenario: str, contestant: str) -> Series | None:
        """Return the number of connections with the highest median throughput."""
        listed = self._series.get((scenario, contestant), [])
        return max(listed, key=lambda one: median(_rate(measured) for measured in one.rounds), default=None)

    def beside(self, one: Series, contestant: str) -> Series | None:
        """Return the series of `contestant` that was interleaved with `one`."""
        listed = self._series.get((one.scenario, contestant), [])
        return next((other for other in listed if other.connections == one.connections), None)


class Target(NamedTuple):
    """One promise: a figure of a contestant, and the least or the most that it may be.

    against  contestant of the same scenario that the figure is a ratio to, or None
    """

    text: str
    scenario: str
    contestant: str
    read: Callable[[Measured], float]
    limit: float
    unit: str
    at_least: bool
    against: str | None = None


def _rate(one: Measured) -> float:
    return one.load.operations_per_s


def _p50(one: Measured) -> float:
    return one.load.tasks.p50_ms


def _p95(one: Measured) -> float:
    return one.load.tasks.p95_ms


def _p99(one: Measured) -> float:
    return one.load.tasks.p99_ms


def _memory(one: Measured) -> float:
    return one.server.memory_bytes / MIB


LEAST: Final = True  # for `at_least`: the figure must reach the limit
MOST: Final = False  # for `at_least`: the figure must not exceed it

TARGETS: Final = (
    Target("consume throughput", "consume", "consume", _rate, 10_000, "ops/s", LEAST),
    Target("consume over ceiling", "consume", "consume", _rate, 0.70, "x", LEAST, "ceiling"),
    Target("hot over spread", "hot", "consume hot", _rate, 0.90, "x", LEAST, "consume"),
    Target("hot over Postgres hot", "postgres-hot", "consume hot", _rate, 5, "x", LEAST, "plain postgres hot"),
    Target("consume 1,500/s p50", "steady", "consume", _p50, 12, "ms", MOST),
    Target("consume 1,500/s p95", "steady", "consume", _p95, 28, "ms", MOST),
    Target("consume 1,500/s p99", "steady", "consume", _p99, 80, "ms", MOST),
    Target("reserve+commit 500/s p95", "reserve", "reserve+commit", _p95, 28, "ms", MOST),
    Target("balance 1,000/s p95", "balance", "balance", _p95, 2, "ms", MOST),
    Target("batch of 100", "batch100", "batch of 100", _rate, 30_000, "ops/s", LEAST),
    Target("batch of 1,000", "batch1000", "batch of 1,000", _rate, 45_000, "ops/s", LEAST),
    Target("assign 500/s p99", "assign", "assign fixed", _p99, 5, "ms", MOST),
    Target("assign 500/s Thompson p99", "assign", "assign Thompson", _p99, 5, "ms", MOST),
    Target("outcomes in batches of 100", "outcomes", "outcomes", _rate, 20_000, "outcomes/s", LEAST),
    Target("server memory", "consume", "consume", _memory, 300, "MiB", MOST),
)


def judge(series: Iterable[Series]) -> list[Verdict]:
    """Compare every target whose scenario was measured with the median of its rounds.

    A run in which a call failed meets no target: its latencies are those of the requests that happened to
    succeed.
    """
    found = Found(series)
    verdicts = []
    for target in TARGETS:
        one = found.best(target.scenario, target.contestant)
        if one is None:
            continue
        values = [target.read(measured) for measured in one.rounds]
        if target.against is not None:
            other = found.beside(one, target.against)
            if other is None:
                continue
            values = ratios(one, other)
        verdicts.append(_verdict(target, one, spread(values)))
    return verdicts


def _verdict(target: Target, one: Series, measured: Spread) -> Verdict:
    clean = all(r.load.errors == 0 and r.load.failed_operations == 0 for r in one.rounds)
    difference = measured.median - target.limit if target.at_least else target.limit - measured.median
    return Verdict(
        target=target.text,
        required=f"{'>=' if target.at_least else '<='} {target.limit:,g} {target.unit}",
        measured=measured,
        unit=target.unit,
        connections=one.connections,
        met=clean and difference >= 0,
        margin=difference / target.limit,
    )
