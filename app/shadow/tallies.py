"""What an outcome adds to the counters of an experiment, and what the counters say: pure.

All counters are integers in one Redis hash, so that replicas only ever add, in any order:

    n<v> outcomes of variant v   s<v> successes   e<v> errors   l<v> outcomes with a latency   o<v> those over the limit
    w<v> outcomes with a value   v<v> sum of values in thousandths   a<v> units enrolled   duplicates, late (after the test),
    quarantined, unshared (without a known share)

and, for the evidence, by kind (S successes, E errors, O over the limit): under a fixed split <kind><cell>:<v> counts them
in each cell of it (`app.shadow.assignment.Split.cells`); under Thompson sampling
<kind>:<v>.<i> is field i of the statistic of `app.shadow.evidence` of challenger v. For the tests against a limit F<kind><v>
counts failures and T<kind><v> trials. The histogram of latencies is a hash of its own: <v>:<bucket>.

Whether the variants got their shares is asked of units, which are what is assigned, at their first outcome: only then is
it known that they came to see their variant. X<cell>:<v> counts them in each cell of a fixed split; under Thompson sampling
X:<v> does, and P:<v> sums the propensities of v over all of them, in millionths. `exposed` is how many are remembered.

A unit is evidence once of each kind, as long as the experiment exists. After its first success a second one comes from a
variant that is known by then: with two for each unit 14 % of A/A tests cross at alpha = 0.02. So what comes later counts,
and is no evidence: `again`. `told` is how many units are remembered for it, `carried` how many outcomes were evidence; both
have an end, after which outcomes count and are no evidence. In the tests against a limit nothing of a unit is a trial after
its first failure. An outcome that names no unit is taken as one of a unit of its own: several of the same unit that do not
name it are each evidence, and then the false positive rate is not held.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from app.shadow.evidence import SUM_FIELDS, increments, sums_of

if TYPE_CHECKING:
    from app.shadow.definition import Definition

THOUSAND: Final = 1_000
MILLION: Final = 1_000_000
BUCKETS_PER_DOUBLING: Final = 4  # so a percentile is told within 19 %
LATENCY_MAX_MS: Final = 10_000_000.0  # nearly three hours; nobody has waited for what takes longer

Kind = Literal["S", "E", "O"]
Fate = Literal["counted", "late", "quarantined"]
Totals = dict[str, int]
Cells = Mapping[int, Sequence[float]]  # number of a cell to the propensities in it


class Class(NamedTuple):
    """What outcomes have in common that add the same.

    latency  bucket of the latency, None without one;  over: the latency is over the limit of the guardrail
    valued   it has a value, which is added besides
    shares   the cell of a fixed split or the version of the weights that the unit was assigned with; None when nobody can
             say how likely it had to get its variant
    """

    variant: int
    fate: Fate = "counted"
    success: bool = False
    error: bool = False
    over: bool = False
    latency: int | None = None
    valued: bool = False
    shares: int | None = None


def share_of(weights: Sequence[float], control: int, challenger: int) -> float:
    """Return the probability of the challenger among the two."""
    both = weights[challenger] + weights[control]
    return weights[challenger] / both if both else 0.0


def added(one: Class) -> list[str | int]:
    """Return what an outcome adds: the field of its value or "", then field, amount, field, amount, ...

    What it adds to the evidence besides is that of `evidence_of`.
    """
    index = one.variant
    if one.fate != "counted":
        return ["", one.fate, 1]
    fields: list[str | int] = [f"v{index}" if one.valued else "", f"n{index}", 1]
    flags = {"s": one.success, "e": one.error, "l": one.latency is not None, "o": one.over, "w": one.valued}
    for letter, holds in flags.items():
        if holds:
            fields += [f"{letter}{index}", 1]
    return [*fields, "unshared", 1] if one.shares is None else fields


def evidence_of(definition: Definition, one: Class, weights: Sequence[float]) -> list[list[str | int]]:
    """Return what an outcome adds once for each unit: kind, tells, field, amount, ...

    kind     X for the first outcome of the unit, before all kinds of evidence
    tells    1 for a success, an error or a slow call, after which the unit is no evidence of this kind any more; 0 for
             a trial without
    weights  propensities of the version `one.shares`; not looked at under a fixed split
    """
    if one.fate != "counted":
        return []
    index, guardrails = one.variant, definition.guardrails
    errors_watched = guardrails is not None and guardrails.error_rate is not None
    latency_watched = guardrails is not None and guardrails.latency_ms_p95 is not None and one.latency is not None
    watched: tuple[tuple[Kind, bool, bool], ...] = (("E", errors_watched, one.error), ("O", latency_watched, one.over))
    pieces: list[list[str | int]] = []
    if one.shares is not None:
        pieces.append(["X", 1, *_exposure(definition, one, weights)])
        if one.success:
            pieces.append(["S", 1, *_terms(definition, "S", one, weights)])
    for kind, holds, fails in watched:
        if holds:
            trial: list[str | int] = [kind, int(fails), f"T{kind}{index}", 1]
            if fails:
                trial += [f"F{kind}{index}", 1]
                trial += _terms(definition, kind, one, weights) if one.shares is not None else ()
            pieces.append(trial)
    return pieces


def _terms(definition: Definition, kind: Kind, one: Class, weights: Sequence[float]) -> list[str | int]:
    """Return what an outcome adds to its cell; under Thompson sampling to the statistic of its challenger, or to all."""
    index, control = one.variant, definition.control
    if definition.allocation == "fixed":
        return [f"{kind}{one.shares}:{index}", 1]
    challengers = definition.challengers if index == control else (index,)
    fields: list[str | int] = []
    for challenger in challengers:
        share = share_of(weights, control, challenger)
        for number, amount in enumerate(increments(share, challenger=index != control)):
            if amount:
                fields += [f"{kind}:{challenger}.{number}", amount]
    return fields


def _exposure(definition: Definition, one: Class, weights: Sequence[float]) -> list[str | int]:
    """Return what the first outcome of a unit adds to the units of the variants, had and expected."""
    if definition.allocation == "fixed":
        return [f"X{one.shares}:{one.variant}", 1]
    fields: list[str | int] = [f"X:{one.variant}", 1]
    for index, weight in enumerate(weights):
        fields += [f"P:{index}", round(weight * MILLION)]
    return fields


def statistic(
    definition: Definition, totals: Mapping[str, int], cells: Cells, kind: Kind, challenger: int
) -> tuple[int, ...]:
    """Return the statistic of a challenger against control, as `app.shadow.evidence` takes it.

    cells  the propensities in every cell of a fixed split; not looked at under Thompson sampling
    """
    if definition.allocation == "thompson":
        return tuple(totals.get(f"{kind}:{challenger}.{number}", 0) for number in range(SUM_FIELDS))
    sums = [0] * SUM_FIELDS
    for cell, propensities in cells.items():
        hits = totals.get(f"{kind}{cell}:{challenger}", 0)
        control_hits = totals.get(f"{kind}{cell}:{definition.control}", 0)
        if not hits + control_hits:
            continue
        share = share_of(propensities, definition.control, challenger)
        if 0 < share < 1:
            for number, amount in enumerate(sums_of(share, hits, control_hits)):
                sums[number] += amount
    return tuple(sums)


def counts_of(totals: Mapping[str, int], letter: str, variants: int) -> tuple[int, ...]:
    """Return one counter of every variant."""
    return tuple(totals.get(f"{letter}{index}", 0) for index in range(variants))


def expected_of(
    definition: Definition, totals: Mapping[str, int], cells: Cells
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return how many units of known shares had an outcome in each variant, and how many should have had."""
    count = len(definition.variants)
    if definition.allocation == "thompson":
        return counts_of(totals, "X:", count), tuple(value / MILLION for value in counts_of(totals, "P:", count))
    observed, expected = [0] * count, [0.0] * count
    for cell, propensities in cells.items():
        found = counts_of(totals, f"X{cell}:", count)
        for index, share in enumerate(propensities):
            observed[index] += found[index]
            expected[index] += sum(found) * share
    return tuple(observed), tuple(expected)


def latency_bucket(latency_ms: float) -> int:
    """Return the bucket of a latency: its upper end is 2 ** (bucket / 4) ms."""
    return 0 if latency_ms <= 1.0 else math.ceil(math.log2(latency_ms) * BUCKETS_PER_DOUBLING - 1e-9)


def percentile_ms(latency: Mapping[str, int], variant: int, share: float) -> float | None:
    """Return the latency that `share` of a variant's outcomes do not exceed, rounded up to its bucket; None without any."""
    prefix = f"{variant}:"
    buckets = sorted((int(field[len(prefix) :]), count) for field, count in latency.items() if field.startswith(prefix))
    left = share * sum(count for _, count in buckets)
    for bucket, count in buckets:
        left -= count
        if left <= 0:
            return float(2 ** (bucket / BUCKETS_PER_DOUBLING))
    return None
