"""The Prometheus series of experiments, with labels for a bounded number of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from app.metrics import labelled
from app.shadow.tallies import counts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from app.shadow.experiment import Experiment

SHOWN_MAX: Final = 100  # experiments with labels of their own, those that were last told something: 2,000 series at most
OUTCOME_RESULTS: Final = ("counted", "duplicate", "late", "quarantined", "refused")
CANARY_STATES: Final = ("stepping", "waiting", "paused", "completed", "rolled_back")


class Counts(NamedTuple):
    """What a process did since its start: outcomes that it took, by OUTCOME_RESULTS; rollbacks that it decided."""

    outcomes: Mapping[str, int] = {}
    rollbacks: int = 0


class ShadowSeries:
    """Reads the experiments at every scrape; probabilities are as old as the last look at the experiment.

    Every replica knows all experiments, as Postgres has them: what is not of this process alone is the same on each.
    """

    def __init__(
        self,
        experiments: Callable[[], Iterable[Experiment] | None],
        counts: Callable[[], Counts],
        promoted: Callable[[], int | None],
    ) -> None:
        """Read at every scrape.

        experiments  all that are known, None before they are loaded
        counts       what this process did
        promoted     versions of rules that became champion over failed checks, None before rules are loaded
        """
        self._experiments = experiments
        self._counts = counts
        self._promoted = promoted

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        labels = ("test", "variant")
        best = GaugeMetricFamily(
            "shadow_test_probability_best", "Exact probability to have the highest rate, at a single look", labels=labels
        )
        samples = GaugeMetricFamily("shadow_test_sample_count", "Outcomes that are counted", labels=labels)
        canaries = GaugeMetricFamily(
            "shieldx_canary_state", "1 for the state that the canary of a test is in", labels=("canary", "state")
        )
        undecided = GaugeMetricFamily(
            "shieldx_shadow_test_open", "1 until a test is deployed or rolled back, then 0", labels=("test",)
        )
        loaded = self._experiments()
        known = list(loaded or ())
        open_ = [one for one in known if one.state.status != "archived"]
        for experiment in sorted(open_, key=lambda one: one.merged_s, reverse=True)[:SHOWN_MAX]:
            definition = experiment.definition
            counts = counts_of(experiment.totals, "n", len(definition.variants))
            for name, count in zip(definition.names, counts, strict=True):
                samples.add_metric((definition.name, name), count)
            for name, probability in zip(definition.names, experiment.probability_best, strict=False):
                best.add_metric((definition.name, name), probability)
            decided = experiment.state.deployment or experiment.state.rollback
            undecided.add_metric((definition.name,), decided is None)
            if definition.canary is not None:
                state = canary_state(experiment)
                for one in CANARY_STATES:
                    canaries.add_metric((definition.name, one), one == state)
        yield from (best, samples, undecided, canaries)
        promoted = self._promoted()
        # A 0 that is not known yet would rise to the true number, as it does for an unsafe deployment.
        if loaded is not None and promoted is not None:
            yield GaugeMetricFamily(
                "shadow_deployments_without_testing",
                "Deployments of variants and promotions of rules for which an admin passed over failed checks",
                sum(one.state.untested for one in known) + promoted,
            )  # fmt: skip
        own = self._counts()
        yield CounterMetricFamily(
            "shieldx_canary_rollbacks", "Tests that this process rolled back to their control, for a guardrail or a person",
            own.rollbacks,
        )  # fmt: skip
        taken = dict.fromkeys(OUTCOME_RESULTS, 0) | dict(own.outcomes)
        yield labelled(
            CounterMetricFamily,
            "shieldx_shadow_outcomes",
            "Reported outcomes by what became of them",
            "result",
            taken.items(),
        )


def canary_state(experiment: Experiment) -> str:
    """Return the one of CANARY_STATES that an experiment with a canary is in."""
    state, canary = experiment.state, experiment.definition.canary
    if state.rollback is not None:
        return "rolled_back"
    if state.step is None or state.step.completed:
        return "completed"
    if state.status == "paused":
        return "paused"
    return "waiting" if canary is not None and canary.requires_approval and not state.step.approved else "stepping"
