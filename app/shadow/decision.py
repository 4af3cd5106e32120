"""How a test ends: pure.

A winner needs evidence that holds at every look (`app.shadow.evidence`), and then, as further conditions, what people
expect of one: enough outcomes, a lift, and an exact probability to be best. The first crossing of the evidence is kept;
the other conditions may come true later. A verdict, once given, stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app import __version__
from app.shadow.anytime_interval import lifts_of
from app.shadow.definition import Crossing, Verdict
from app.shadow.evidence import crossed, e_value, harm_e_value, no_difference
from app.shadow.posterior import Posterior, analyse
from app.shadow.tallies import counts_of, statistic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.shadow.definition import Definition, State
    from app.shadow.tallies import Cells

NULL_RATIO: Final = 1.0  # r0 of the tests for "better" and "worse": the rates are the same


class Look(NamedTuple):
    """One look at an experiment's counts. All by challenger are in the order of `Definition.challengers`."""

    samples: tuple[int, ...]
    successes: tuple[int, ...]
    statistics: tuple[tuple[int, ...], ...]
    e_values: tuple[float, ...]
    harm_e_values: tuple[float, ...]


class Gate(NamedTuple):
    """One condition of a winner: its name, whether it holds, and what is missing."""

    name: str
    holds: bool
    detail: str


def look_at(definition: Definition, totals: Mapping[str, int], cells: Cells) -> Look:
    """Return the evidence in the counts."""
    count = len(definition.variants)
    statistics = tuple(statistic(definition, totals, cells, "S", index) for index in definition.challengers)
    return Look(
        samples=counts_of(totals, "n", count),
        successes=counts_of(totals, "s", count),
        statistics=statistics,
        e_values=tuple(e_value(sums, NULL_RATIO) for sums in statistics),
        harm_e_values=tuple(harm_e_value(sums, NULL_RATIO) for sums in statistics),
    )


def threshold(definition: Definition) -> float:
    """Return what an e-value must reach: 1 / max_false_positive for each challenger (Bonferroni)."""
    return len(definition.challengers) / definition.max_false_positive


def inputs_of(definition: Definition, look: Look) -> dict[str, Any]:
    """Return what a decision was made from: enough to compute it again without the server."""
    names = [definition.names[index] for index in definition.challengers]
    return {
        "samples": dict(zip(definition.names, look.samples, strict=True)),
        "successes": dict(zip(definition.names, look.successes, strict=True)),
        "statistics": dict(zip(names, look.statistics, strict=True)),
        "e_values": dict(zip(names, look.e_values, strict=True)),
        "harm_e_values": dict(zip(names, look.harm_e_values, strict=True)),
        "max_false_positive": definition.max_false_positive,
        "null_ratio": NULL_RATIO,
        "threshold": threshold(definition),
        "code": __version__,
    }


def winner_inputs(definition: Definition, look: Look, posterior: Posterior) -> dict[str, Any]:
    """Return what the conditions of a winner are judged by: `gates_of` computes from the same."""
    return inputs_of(definition, look) | {
        "probability_best": dict(zip(definition.names, posterior.probability_best, strict=True)),
        "lift": {definition.names[index]: lift_of(definition, look, index) for index in definition.challengers},
        "confidence": definition.confidence, "min_lift": definition.min_lift, "min_samples": definition.min_samples,
    }  # fmt: skip


def _no_difference_inputs(definition: Definition, look: Look) -> dict[str, Any]:
    """Return the test that says so: its hypothesis is the least lift, and its threshold is not divided by challengers."""
    names = [definition.names[index] for index in definition.challengers]
    ratio = 1 + definition.min_lift
    values = [harm_e_value(sums, ratio) for sums in look.statistics]
    return {
        "min_lift": definition.min_lift,
        "no_difference": {
            "null_ratio": ratio, "threshold": 1 / definition.max_false_positive,
            "harm_e_values": dict(zip(names, values, strict=True)),
        },
    }  # fmt: skip


def crossings_of(definition: Definition, state: State, look: Look, at_ms: int) -> tuple[Crossing, ...]:
    """Return the crossings that are new in this look."""
    found = []
    inputs: dict[str, Any] = {}
    count = len(definition.challengers)
    for place, index in enumerate(definition.challengers):
        name = definition.names[index]
        for harm, values in ((False, look.e_values), (True, look.harm_e_values)):
            if crossed(values[place], definition.max_false_positive, count) and state.crossing_of(name, harm=harm) is None:
                inputs = inputs or inputs_of(definition, look)
                found.append(Crossing(name, harm, at_ms, inputs))
    return tuple(found)


def belief(definition: Definition, look: Look) -> Posterior:
    """Return the exact posterior of a look: milliseconds for many variants."""
    found = analyse(look.successes, look.samples, definition.control)
    # A sum of rounded terms may end a hair below zero, and a probability is shown to people.
    return found._replace(probability_best=tuple(max(0.0, one) for one in found.probability_best))


def lift_of(definition: Definition, look: Look, index: int) -> float:
    """Return the likeliest lift of a challenger by the evidence, or the least that is not ruled out when none can be told.

    Not from pooled rates: when these drift while the shares change, as under Thompson sampling, pooled rates differ although
    the variants do not (Simpson's paradox). Here every success is compared with the shares that it had.
    """
    sums = look.statistics[definition.challengers.index(index)]
    found = lifts_of([sums], definition.max_false_positive)[0]
    return found.low if found.estimate is None else found.estimate


def gates_of(definition: Definition, state: State, look: Look, posterior: Posterior, index: int) -> tuple[Gate, ...]:
    """Return every condition under which a challenger is a winner."""
    name = definition.names[index]
    e = look.e_values[definition.challengers.index(index)]
    least = min(look.samples)
    lift, best = lift_of(definition, look, index), posterior.probability_best[index]
    return (
        Gate(
            "evidence", state.crossing_of(name) is not None,
            f"the e-value of {name} is {e:.3g}; it must once reach {threshold(definition):g}",
        ),
        Gate(
            "min_samples", least >= definition.min_samples,
            f"the smallest variant has {least} outcomes of {definition.min_samples}",
        ),
        Gate(
            "min_lift", lift >= definition.min_lift,
            f"the lift of {name} is {lift:.4g}; it must be at least {definition.min_lift:g}",
        ),
        Gate(
            "probability_best", best > definition.confidence,
            f"the probability that {name} is best is {best:.4f}; it must exceed {definition.confidence:g}",
        ),
    )  # fmt: skip


def verdict_of(definition: Definition, state: State, look: Look, posterior: Posterior | None, at_ms: int) -> Verdict | None:
    """Return how the test ends, None while it goes on.

    posterior  of this look; it is needed only when some challenger has crossed
    """
    better = [index for index in definition.challengers if state.crossing_of(definition.names[index]) is not None]
    if better and posterior is not None:
        ready = [i for i in better if all(gate.holds for gate in gates_of(definition, state, look, posterior, i))]
        if ready:
            winner = max(ready, key=lambda index: posterior.probability_best[index])
            reasons = tuple(gate.detail for gate in gates_of(definition, state, look, posterior, winner))
            inputs = winner_inputs(definition, look, posterior)
            return Verdict("winner", definition.names[winner], reasons, at_ms, inputs)
    if all(state.crossing_of(definition.names[index], harm=True) is not None for index in definition.challengers):
        return Verdict("stopped", None, ("every challenger is worse than the control",), at_ms, inputs_of(definition, look))
    if definition.min_lift > 0 and no_difference(look.statistics, definition.min_lift, definition.max_false_positive):
        reason = f"every challenger is shown to lift the rate by less than {definition.min_lift:g}"
        inputs = inputs_of(definition, look) | _no_difference_inputs(definition, look)
        return Verdict("no_difference", None, (reason,), at_ms, inputs)
    return None
