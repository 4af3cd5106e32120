"""The Prometheus series of experiments, with labels for a bounded number of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.shadow.tallies import counts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from app.shadow.experiment import Experiment

SHOWN_MAX: Final = 100  # experiments with labels of their own, those that were last told something: 2,000 series at most


class ShadowSeries(Collector):
    """Reads the experiments at every scrape; probabilities are as old as the last look at the experiment."""

    def __init__(self, experiments: Callable[[], Iterable[Experiment]]) -> None:
        """`experiments` returns all that are known."""
        self._experiments = experiments

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the families."""
        labels = ("experiment", "variant")
        best = GaugeMetricFamily(
            "shadow_test_probability_best", "Exact probability to have the highest rate, at a single look", labels=labels
        )
        samples = GaugeMetricFamily("shadow_test_sample_count", "Outcomes that are counted", labels=labels)
        untested = GaugeMetricFamily(
            "shadow_deployments_without_testing", "Deployments for which an admin passed over failed checks"
        )
        known = list(self._experiments())
        open_ = [one for one in known if one.state.status != "archived"]
        for experiment in sorted(open_, key=lambda one: one.merged_s, reverse=True)[:SHOWN_MAX]:
            definition = experiment.definition
            counts = counts_of(experiment.totals, "n", len(definition.variants))
            for name, count in zip(definition.names, counts, strict=True):
                samples.add_metric((definition.name, name), count)
            for name, probability in zip(definition.names, experiment.probability_best, strict=False):
                best.add_metric((definition.name, name), probability)
        untested.add_metric((), sum(one.state.untested for one in known))
        yield from (best, samples, untested)
