"""Which variant a unit gets: pure, microseconds, no I/O.

A unit's bucket is a hash of experiment seed and unit (`app.shadow.bucketing`); each variant owns ranges of buckets. Their
starts depend on the weights only, so that a coverage or a canary step that grows adds units and moves none.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec
import numpy as np

from app.shadow.bucketing import BUCKETS, Ranges, bucket_of, index_in, ranges_of, shares_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.shadow.definition import Definition, State

PERCENT: Final = 100.0
# Outcomes without a unit are taken to be known this long after the unit was assigned. Whoever has later ones names units.
IN_FLIGHT_MS: Final = 600_000
CELLS_PER_STAGE: Final = 1_000  # more than there can be stages
_NOWHERE: Final = -1

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


class _Histories(NamedTuple):
    """What became of units over the stages up to now.

    joined  first stage at which each bucket took part; -1 if it never did, or if its variant has changed since
    cells   propensities of the units that joined at one stage and have kept their variant up to another
    """

    joined: NDArray[np.int8]
    cells: dict[int, tuple[float, ...]]


def cell_of(joined: int, stage: int, *, moves: bool) -> int:
    """Return the number of the cell of units that joined at one stage and still have the same variant at another.

    moves  variants lose units as the stages go on, as the control does under a canary; otherwise only `joined` counts
    """
    last = stage if moves else joined
    return last * CELLS_PER_STAGE + joined if last else 0


class Split:
    """The fixed allocation of an experiment as it stands; made again whenever the state changes.

    Evidence needs to know how likely a unit was to have the variant that its outcome came from. The outcome may be of an
    earlier stage, of which it does not tell. So units are put into cells: by the stage at which they joined, among those
    that have had one variant ever since. Which bucket is in which cell is known before any outcome, and each bucket is
    equally likely, so the share of the variants in the cell is exact however late the outcome comes. A unit whose variant
    has changed is in no cell: its outcomes count, and are no evidence.

    stage   the number of the stage that holds now
    stages  propensities at every stage
    """

    def __init__(self, definition: Definition, state: State) -> None:
        """Look everything up that is the same for all units."""
        self._seed = definition.seed
        self._moves = definition.canary is not None
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

    def place(self, unit: str, reported: int | None = None) -> tuple[int | None, int] | None:
        """Return cell and variant of a unit's outcome: None for a unit that takes no part, no cell where it is no evidence.

        reported  the variant that the outcome is said to have come from: it counts there if the unit ever had it
        """
        bucket = bucket_of(self._seed, unit)
        number = index_in(self._flat, bucket)
        index = None if number is None else self._results[number].index
        if reported is not None and reported != index:
            before = (self._ranges[stage][reported] for stage in range(self.stage))
            if any(index_in(ranges, bucket) is not None for ranges in before):
                index = reported
        if index is None:
            return None
        if not self.stage:
            return 0, index
        joined = int(self._histories.joined[round(bucket * BUCKETS)])
        return (None if joined == _NOWHERE else cell_of(joined, self.stage, moves=self._moves)), index

    def cell_without_unit(self, quiet_ms: int) -> int | None:
        """Return the cell of an outcome that names no unit: the whole stage, None while it may be of one with other shares.

        quiet_ms  since the stage changed
        """
        alike = all(one == self.stages[self.stage] for one in self.stages[: self.stage])
        return self.stage if alike or quiet_ms >= IN_FLIGHT_MS else None

    @cached_property
    def cells(self) -> dict[int, tuple[float, ...]]:
        """The propensities in every cell, by its number; that of a stage is the cell of outcomes without a unit."""
        whole = dict(enumerate(self.stages))
        return whole | self._histories.cells if self.stage else whole

    @cached_property
    def _histories(self) -> _Histories:
        first = np.full(BUCKETS, _NOWHERE, dtype=np.int8)
        joined = first.copy()
        steady = np.ones(BUCKETS, dtype=bool)
        cells: dict[int, tuple[float, ...]] = {}
        for stage in range(self.stage + 1):
            owners = _owners(self._ranges[stage])
            inside = owners != _NOWHERE
            fresh = inside & (joined == _NOWHERE)
            joined[fresh], first[fresh] = stage, owners[fresh]
            steady &= ~inside | (owners == first)
            for since in range(stage + 1) if self._moves else (stage,):
                widths = np.bincount(first[steady & (joined == since)], minlength=len(self._ranges[stage]))
                if widths.sum():
                    number = cell_of(since, stage, moves=self._moves)
                    cells[number] = tuple((widths / widths.sum()).tolist())
        return _Histories(np.where(steady, joined, np.int8(_NOWHERE)), cells)


def _owners(by_variant: tuple[Ranges, ...]) -> NDArray[np.int8]:
    """Return the variant of every bucket, -1 outside: as `index_in` hands them out, the first range that holds it."""
    owners = np.full(BUCKETS, _NOWHERE, dtype=np.int8)
    values = np.arange(BUCKETS) / BUCKETS
    for index, ranges in reversed(list(enumerate(by_variant))):
        for start, end in ranges:
            owners[np.searchsorted(values, start) : np.searchsorted(values, end)] = index
    return owners


def settled(definition: Definition, state: State) -> Assignment | None:
    """Return what every unit gets when nothing is tested any more, None while it is."""
    control = definition.control
    if state.status == "rolled_back":
        return Assignment(definition.names[control], control, "rolled_back")
    # A rollback is for good: what had been deployed before it does not come back when the experiment is put away.
    if state.deployment is not None and state.rollback is None:
        index = definition.index_of(state.deployment.variant)
        if index is None:
            raise AssertionError("what is deployed is a variant of the experiment")
        return Assignment(definition.names[index], index, "deployed" if state.status != "archived" else "archived")
    if state.status == "archived":
        return Assignment(definition.names[control], control, "archived")
    return None
