"""Which variant a unit gets: pure, microseconds, no I/O.

A unit's bucket is a hash of experiment seed and unit (`app.shadow.bucketing`); each variant owns ranges of buckets. Their
starts depend on the weights only, so that a coverage or a canary step that grows adds units and moves none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from app.shadow.bucketing import Ranges, bucket_of, index_in, ranges_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.shadow.definition import Definition, State

PERCENT: Final = 100.0

Reason = Literal["assigned", "sampled", "outside_coverage", "paused", "deployed", "rolled_back", "archived"]


class Assignment(NamedTuple):
    """What a unit gets, and why.

    index       the variant's place in the definition
    reason      assigned: by its bucket; sampled: by Thompson sampling; all others: not part of the test, and its outcomes
                are not counted: outside_coverage, paused (no new units), rolled_back and archived get the control,
                deployed and archived get what was deployed
    propensity  probability that a unit of the test had to get this variant; None when it is not part of the test
    version     of the weights that it was sampled with, None for fixed ones
    """

    variant: str
    index: int
    reason: Reason
    propensity: float | None = None
    version: int | None = None

    @property
    def counts(self) -> bool:
        """Whether the unit takes part in the test."""
        return self.propensity is not None


def canary_ranges(weights: Sequence[float], control: int, share: float) -> tuple[Ranges, ...]:
    """Return the ranges of each variant when the challengers together get `share` of all units.

    As long as there is room, the control gets a part of its own that is as large as its weight says, and all others
    stay outside. Beyond that the challengers take the control's part from the ends of its segments, one each.
    """
    room = 1.0 - weights[control]
    coverage = min(1.0, share / room)
    own = ranges_of(weights, coverage)
    result: list[Ranges] = [(one,) for one in own]
    taken = share - room
    if taken <= 0:
        return tuple(result)
    start = own[control][0]
    kept: list[tuple[float, float]] = []
    for index, weight in enumerate(weights):
        if index == control:
            continue
        part = weight / room
        end = start + weights[control] * part
        cut = end - taken * part
        kept.append((start, cut))
        result[index] = (*result[index], (cut, end))
        start = end
    result[control] = tuple(one for one in kept if one[1] > one[0])
    return tuple(result)


def shares_of(definition: Definition, state: State) -> tuple[Ranges, ...]:
    """Return the ranges of each variant as an experiment stands."""
    if definition.canary is not None and state.step is not None:
        share = definition.canary.steps[state.step.number] / PERCENT
        return canary_ranges(definition.weights, definition.control, share)
    return tuple((one,) for one in ranges_of(definition.weights, state.coverage))


class Split:
    """The fixed allocation of an experiment as it stands; made again whenever the state changes."""

    def __init__(self, definition: Definition, state: State) -> None:
        """Look everything up that is the same for all units."""
        shares = shares_of(definition, state)
        widths = [sum(end - start for start, end in ranges) for ranges in shares]
        total = sum(widths)
        self._seed = definition.seed
        self._flat: Ranges = tuple(one for ranges in shares for one in ranges)
        self.propensities: Final = tuple(width / total for width in widths)
        self._results: Final = tuple(
            Assignment(definition.names[index], index, "assigned", self.propensities[index])
            for index, ranges in enumerate(shares)
            for _ in ranges
        )
        self._outside: Final = Assignment(definition.names[definition.control], definition.control, "outside_coverage")

    def assign(self, unit: str) -> Assignment:
        """Return what a unit gets."""
        place = index_in(self._flat, bucket_of(self._seed, unit))
        return self._outside if place is None else self._results[place]


def settled(definition: Definition, state: State) -> Assignment | None:
    """Return what every unit gets when nothing is tested any more, None while it is."""
    control = definition.control
    if state.status == "rolled_back":
        return Assignment(definition.names[control], control, "rolled_back")
    if state.deployment is not None:
        index = definition.index_of(state.deployment.variant)
        if index is None:
            raise AssertionError("what is deployed is a variant of the experiment")
        return Assignment(definition.names[index], index, "deployed" if state.status != "archived" else "archived")
    if state.status == "archived":
        return Assignment(definition.names[control], control, "archived")
    return None
