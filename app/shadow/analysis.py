"""What the counts of an experiment say: the answer of GET /v1/experiments/{name}/analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from app.shadow.anytime_interval import lifts_of
from app.shadow.decision import NULL_RATIO, belief, gates_of, look_at, threshold
from app.shadow.definition import Crossing, Definition, State
from app.shadow.monte_carlo import probability_best_mc
from app.shadow.srm import srm_p_value
from app.shadow.tallies import THOUSAND, counts_of, expected_of, percentile_ms
from app.shadow.view import decision_view
from app.shadow.wire import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.shadow.decision import Look
    from app.shadow.posterior import Posterior
    from app.shadow.tallies import Cells


class VariantAnalysis(Struct, kw_only=True):
    """What is known of one variant. Intervals are of 95 %; those of `belief` hold for a single look.

    units                 units that had an outcome, among those whose chance of this variant is known; an outcome that
                          names no unit is one of its own
    rate                  successes / samples; null without samples
    probability_best      exact, by quadrature; probability_best_mc the same by simulation
    expected_loss         rate that is given away, on average over belief, by choosing this variant
    lift                  rate / rate of control - 1; null for the control and without successes of it
    anytime_lift_interval interval of the lift that holds at every look; null for the control, an open end is null
    e_value               evidence for better than control that holds at every look; harm_e_value for worse
    latency_ms_p95        rounded up to its bucket: at most 19 % too high
    """

    name: str
    control: bool
    units: int
    samples: int
    successes: int
    rate: float | None
    credible_interval: list[float]
    probability_best: float
    probability_best_mc: float
    expected_loss: float
    lift: float | None
    lift_interval: list[float | None] | None
    anytime_lift_interval: list[float | None] | None
    e_value: float | None
    harm_e_value: float | None
    errors: int
    error_rate: float | None
    latency_ms_p95: float | None
    value_mean: float | None
    unmet: list[str]


class Crossed(Struct):
    """The first time that the evidence about a challenger crossed the threshold."""

    variant: str
    harm: bool
    at_ms: int


class Analysis(Struct, kw_only=True):
    """What the counts say, and how the test stands.

    threshold         what an e-value must reach: challengers / max_false_positive
    srm_p_value       of the units of the variants against their shares; below 0.001 they are not what they should be, and
                      nothing else can be trusted
    without_evidence  outcomes that are counted and are no evidence, because nobody knows their unit's propensity
    repeated_by_unit  successes, errors and slow calls that are counted and are no evidence: their unit had one before
    """

    name: str
    decision: str
    variant: str | None
    reasons: list[str]
    test: Decision
    variants: list[VariantAnalysis]
    threshold: float
    max_false_positive: float
    null_ratio: float
    crossings: list[Crossed]
    srm_p_value: float
    samples: int
    duplicates: int
    late: int
    quarantined: int
    without_evidence: int
    repeated_by_unit: int
    draws: int
    seed: int


def analysis_of(
    definition: Definition,
    state: State,
    totals: Mapping[str, int],
    latency: Mapping[str, int],
    cells: Cells,
    draws: int,
    seed: int,
) -> Analysis:
    """Return the analysis. Computes for milliseconds: run it in a thread."""
    look = look_at(definition, totals, cells)
    posterior = belief(definition, look)
    simulated = probability_best_mc(look.successes, look.samples, draws, seed)
    units, expected = expected_of(definition, totals, cells)
    intervals = lifts_of(look.statistics, definition.max_false_positive)
    variants = []
    for index, variant in enumerate(definition.variants):
        place = None if variant.control else definition.challengers.index(index)
        one = _belief(definition, state, look, posterior, index)
        one.units, one.probability_best_mc = units[index], simulated[index]
        one.latency_ms_p95 = percentile_ms(latency, index, 0.95)
        one.errors = totals.get(f"e{index}", 0)
        one.error_rate = one.errors / one.samples if one.samples else None
        valued = totals.get(f"w{index}", 0)
        one.value_mean = totals.get(f"v{index}", 0) / THOUSAND / valued if valued else None
        if place is not None:
            one.anytime_lift_interval = [intervals[place].low, intervals[place].high]
        variants.append(one)
    test = decision_view(state)
    return Analysis(
        name=definition.name, decision=test.decision, variant=test.variant, reasons=test.reasons, test=test,
        variants=variants, threshold=threshold(definition), max_false_positive=definition.max_false_positive,
        null_ratio=NULL_RATIO, crossings=[_crossed(one) for one in state.crossings],
        srm_p_value=srm_p_value(units, expected),
        samples=sum(counts_of(totals, "n", len(variants))), duplicates=totals.get("duplicates", 0),
        late=totals.get("late", 0), quarantined=totals.get("quarantined", 0),
        without_evidence=totals.get("unshared", 0), repeated_by_unit=totals.get("again", 0), draws=draws, seed=seed,
    )  # fmt: skip


def _crossed(one: Crossing) -> Crossed:
    return Crossed(one.variant, one.harm, one.at_ms)


def _belief(definition: Definition, state: State, look: Look, posterior: Posterior, index: int) -> VariantAnalysis:
    """Return what is believed of a variant, with what it lacks to be the winner."""
    variant = definition.variants[index]
    place = None if variant.control else definition.challengers.index(index)
    low, high = posterior.lift_low[index], posterior.lift_high[index]
    gates = () if place is None else gates_of(definition, state, look, posterior, index)
    return VariantAnalysis(
        name=variant.name, control=variant.control, units=0, samples=look.samples[index], successes=look.successes[index],
        rate=posterior.rate[index], credible_interval=[posterior.interval_low[index], posterior.interval_high[index]],
        probability_best=posterior.probability_best[index], probability_best_mc=0.0,
        expected_loss=posterior.expected_loss[index], lift=posterior.lift[index],
        lift_interval=None if low is None else [low, high], anytime_lift_interval=None,
        e_value=None if place is None else look.e_values[place],
        harm_e_value=None if place is None else look.harm_e_values[place],
        errors=0, error_rate=None, latency_ms_p95=None, value_mean=None,
        unmet=[gate.detail for gate in gates if not gate.holds],
    )  # fmt: skip
