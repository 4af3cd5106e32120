"""The Prometheus series of breakers, read at every scrape."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from app.breaker import BreakerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

    from app.breaker import Breaker

LEVELS: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


def breaker_families(named: Iterable[tuple[str, Breaker]], now_s: float) -> Iterator[Metric]:
    """Yield the state and the openings of breakers, those of one name together: the worst state, all openings."""
    levels: dict[str, int] = {}
    opened: dict[str, int] = {}
    for name, breaker in named:
        levels[name] = max(levels.get(name, 0), LEVELS[breaker.state(now_s)])
        opened[name] = opened.get(name, 0) + breaker.opened
    state = GaugeMetricFamily("shieldx_breaker_state", "0 closed, 1 half open, 2 open", labels=("name",))
    counts = CounterMetricFamily("shieldx_breaker_opened", "Times that a breaker has opened", labels=("name",))
    for name, level in levels.items():
        state.add_metric((name,), level)
        counts.add_metric((name,), opened[name])
    yield state
    yield counts


class BreakerSeries(Collector):
    """What stands before our own stores. Breakers of one name are told together: the worst state, all openings."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        """`clock_s` is the time that the breakers are used with."""
        self._clock_s = clock_s
        self._breakers: list[Breaker] = []

    def add(self, breaker: Breaker) -> Breaker:
        """Tell of this one, too, and return it."""
        self._breakers.append(breaker)
        return breaker

    def collect(self) -> Iterator[Metric]:
        """Yield both series."""
        yield from breaker_families(((one.name, one) for one in self._breakers), self._clock_s())
