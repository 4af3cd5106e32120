"""The locator's Prometheus series. No label is a name that clients choose: their number would have no bound."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from app.locator.balancing import STRATEGIES
from app.locator.instance import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from app.locator.opening import Locator

BREAKER_STATES = ("closed", "open", "half_open")


class LocatorSeries:
    """Counts, and what is read from the locator at every scrape."""

    def __init__(self, locator: Locator) -> None:
        """`locator` may not have been started."""
        self._locator = locator
        self._lookups = dict.fromkeys((*STRATEGIES, "none"), 0)
        self._panics = 0
        self._reports = {True: 0, False: 0}
        self._breakers = dict.fromkeys(BREAKER_STATES, 0)

    def count_lookup(self, strategy: str, *, panic: bool) -> None:
        """Count a lookup by its strategy; "none" when no instance was there."""
        self._lookups[strategy] += 1
        self._panics += panic

    def count_report(self, *, ok: bool) -> None:
        """Count a report that was taken."""
        self._reports[ok] += 1

    def count_breaker(self, state: str) -> None:
        """Count a breaker that came into a state."""
        self._breakers[state] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield all series."""
        yield from self._instances()
        yield from self._counts()

    def _instances(self) -> Iterator[Metric]:
        locator = self._locator
        directory = locator.directory
        states = Counter(record.instance.state for _, _, record in directory.records())
        family = GaugeMetricFamily("shieldx_locator_instances", "Registered instances by state", labels=("state",))
        for state in State:
            family.add_metric((state.value,), states[state])
        yield family
        services = sum(bool(service.records) for service in directory.services.values())
        yield GaugeMetricFamily("shieldx_locator_services", "Services with instances", services)
        yield GaugeMetricFamily("shieldx_locator_index", "Revision of the registry", directory.index)
        yield GaugeMetricFamily(
            "shieldx_locator_watchers", "Watches that are open, streams of flags included", locator.watches.open
        )
        yield GaugeMetricFamily(
            "shieldx_locator_waiting", "Changes of the registry that wait for their turn", locator.admission.waiting
        )
        yield GaugeMetricFamily("shieldx_locator_following", "1 while changes of other replicas arrive", locator.following)
        yield GaugeMetricFamily(
            "shieldx_locator_breakers_open", "Instances that get no calls because their breaker is open",
            locator.balancer.open_breakers,
        )  # fmt: skip
        leases = sum(locator.balancer.leased(name) for name in directory.services)
        yield GaugeMetricFamily("shieldx_locator_leases", "Calls that are lent out", leases)

    def _counts(self) -> Iterator[Metric]:
        locator = self._locator
        lookups = CounterMetricFamily("shieldx_locator_lookups", "Lookups by strategy", labels=("strategy",))
        for strategy, count in self._lookups.items():
            lookups.add_metric((strategy,), count)
        yield lookups
        reports = CounterMetricFamily("shieldx_locator_reports", "Reported calls", labels=("ok",))
        for ok, count in self._reports.items():
            reports.add_metric((str(ok).lower(),), count)
        yield reports
        breakers = CounterMetricFamily(
            "shieldx_locator_breaker_changes", "Breakers by the state they came into", labels=("state",)
        )
        for state, count in self._breakers.items():
            breakers.add_metric((state,), count)
        yield breakers
        yield CounterMetricFamily("shieldx_locator_panics", "Lookups with too few healthy instances", self._panics)
        yield CounterMetricFamily(
            "shieldx_locator_rate_limited", "Changes of the registry answered 429", locator.admission.limited
        )
        registry, feed, upkeep, checks = locator.registry, locator.feed, locator.upkeep, locator.checks
        if registry is None or feed is None or upkeep is None or checks is None:
            return
        yield CounterMetricFamily("shieldx_locator_changes", "Changes made by this replica", registry.changes)
        yield CounterMetricFamily("shieldx_locator_batches", "Script calls of the registry", registry.calls)
        yield CounterMetricFamily("shieldx_locator_reloads", "Times the registry was read as a whole", feed.reloads)
        yield CounterMetricFamily("shieldx_locator_kept", "Removals put off by self-preservation", upkeep.kept)
        yield CounterMetricFamily("shieldx_locator_extended_seconds", "Time given for own delays", upkeep.extended_s)
        yield CounterMetricFamily("shieldx_locator_checks", "Active checks made", checks.made)
        yield CounterMetricFamily("shieldx_locator_failed_checks", "Active checks that failed", checks.failed)
