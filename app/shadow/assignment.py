"""Which variant a unit gets: pure, microseconds, no I/O.

A unit's bucket is a hash of experiment seed and unit (`app.shadow.bucketing`); each variant owns ranges of buckets. Their
starts depend on the weights only, so that a coverage or a canary step that grows adds units and moves none.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from app.shadow.bucketing import Ranges, bucket_of, index_in, ranges_of, shares_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.shadow.definition import Definition, State

PERCENT: Final = 100.0

Reason = Literal["assigned", "sampled", "outside_coverage", "paused", "deployed", "rolled_back", "archived"]


class Assignment(msgspec.Struct, frozen=True):
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


@lru_cache(maxsize=4096)
def _ranges(weights: tuple[float, ...], control: int, share: float | None, coverage: float) -> tuple[Ranges, ...]:
    if share is not None:
        return canary_ranges(weights, control, share)
    return tuple((one,) for one in ranges_of(weights, coverage))


def stages_of(definition: Definition, state: State) -> tuple[tuple[Ranges, ...], ...]:
    """Return the ranges of each variant at every stage that a fixed test can have had: canary steps, or coverages."""
    weights, control = definition.weights, definition.control
    if definition.canary is not None:
        return tuple(_ranges(weights, control, percent / PERCENT, 1.0) for percent in definition.canary.steps)
    return tuple(_ranges(weights, control, None, coverage) for coverage in state.coverages)


@lru_cache(maxsize=4096)
def propensities_of(ranges: tuple[Ranges, ...]) -> tuple[float, ...]:
    """Return with which probability a unit that takes part has each variant: exact, in whole buckets."""
    widths = [sum(shares_of(one)) for one in ranges]
    total = sum(widths)
    return tuple(width / total for width in widths)


class Split:
    """The fixed allocation of an experiment as it stands; made again whenever the state changes.

    stage   the number of the stage that holds now
    stages  propensities at every stage
    """

    def __init__(self, definition: Definition, state: State) -> None:
        """Look everything up that is the same for all units."""
        self._seed = definition.seed
        self.stage: Final = state.stage
        ranges_by_stage = stages_of(definition, state)
        self.stages: Final = tuple(propensities_of(ranges) for ranges in ranges_by_stage)
        self._ranges = ranges_by_stage
        by_variant = ranges_by_stage[self.stage]
        self._flat: Ranges = tuple(one for ranges in by_variant for one in ranges)
        self._results: Final = tuple(
            Assignment(definition.names[index], index, "assigned", self.stages[self.stage][index])
            for index, ranges in enumerate(by_variant)
            for _ in ranges
        )
        self._outside: Final = Assignment(definition.names[definition.control], definition.control, "outside_coverage")

    def assign(self, unit: str) -> Assignment:
        """Return what a unit gets."""
        place = index_in(self._flat, bucket_of(self._seed, unit))
        return self._outside if place is None else self._results[place]

    def stage_with(self, unit: str, index: int) -> int | None:
        """Return the last stage up to now at which a unit had this variant, None if it never had."""
        bucket = bucket_of(self._seed, unit)
        for stage in range(self.stage, -1, -1):
            if index_in(self._ranges[stage][index], bucket) is not None:
                return stage
        return None


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
