"""Who gets what under a fixed split: shares, and that growth moves nobody."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.shadow.assignment import IN_FLIGHT_MS, PERCENT, Split, canary_ranges, propensities_of, settled, stages_of
from app.shadow.bucketing import BUCKETS, index_in
from app.shadow.definition import Allocation, Canary, CanaryStep, Deployment, Rollback, State, Variant
from app.shadow.wire import NewExperiment, NewVariant, definition_of
from app.web.problems import Problem
from tests.cost import least_cost_s
from tests.shadow.conftest import pair

ROLLBACK = Rollback(1, "k", "r", {})
STEPS = (1.0, 5.0, 25.0, 50.0, 60.0, 100.0)
CANARY = pair(
    variants=(Variant("b", weight=2.0), Variant("a", control=True, weight=5.0), Variant("c", weight=3.0)),
    canary=Canary(STEPS),
)


def at_step(number: int) -> Split:
    return Split(CANARY, State(step=CanaryStep(number, 0, (0, 0, 0))))


def owner(split_ranges: tuple[object, ...], bucket: int) -> int | None:
    return next((i for i, ranges in enumerate(split_ranges) if index_in(ranges, bucket / BUCKETS) is not None), None)  # type: ignore[arg-type]


def test_a_canary_that_grows_moves_no_unit_away_from_its_challenger() -> None:
    stages = stages_of(CANARY, State())

    owners = [[owner(stage, bucket) for bucket in range(0, BUCKETS, 7)] for stage in stages]

    for before, after in pairwise(owners):
        kept = [one == two for one, two in zip(before, after, strict=True) if one in CANARY.challengers]
        assert all(kept)
        assert kept
    assert CANARY.control not in owners[-1]


@pytest.mark.parametrize("weights", [(1e-9, 1.0), (1.0, 1e-9), (1.0, 10_000.0)])
@pytest.mark.parametrize("allocation", ["fixed", "thompson"])
def test_a_weight_below_one_bucket_is_refused_wherever_it_stands(
    weights: tuple[float, float], allocation: Allocation
) -> None:
    variants = [NewVariant("a", control=True, weight=weights[0]), NewVariant("b", weight=weights[1])]

    with pytest.raises(Problem) as refused:
        definition_of(NewExperiment("x", variants, allocation))

    assert [one.pointer for one in refused.value.errors] == ["/variants"]


def test_a_weight_of_one_bucket_is_taken() -> None:
    variants = [NewVariant("a", control=True, weight=1.0), NewVariant("b", weight=9_999.0)]

    assert definition_of(NewExperiment("x", variants, "fixed")).weights[0] == pytest.approx(1 / BUCKETS)


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_the_challengers_of_a_step_get_its_percent_by_weight(number: int) -> None:
    ranges = stages_of(CANARY, State())[number]

    owned = [sum(owner((one,), bucket) is not None for bucket in range(BUCKETS)) for one in ranges]

    share = STEPS[number] / PERCENT
    assert abs(owned[0] - share * BUCKETS * 0.4) <= 2
    assert abs(owned[2] - share * BUCKETS * 0.6) <= 2
    assert propensities_of(ranges) == pytest.approx([part / sum(owned) for part in owned])


@given(weights=st.lists(st.floats(0.05, 1), min_size=2, max_size=6), share=st.floats(0.001, 1), data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_bucket_belongs_to_two_variants(weights: list[float], share: float, data: st.DataObject) -> None:
    whole = [weight / sum(weights) for weight in weights]
    control = data.draw(st.integers(0, len(weights) - 1))

    ranges = canary_ranges(whole, control, share)

    flat = sorted(one for part in ranges for one in part)
    assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(flat))


@given(before=st.floats(0.05, 1), after=st.floats(0.05, 1), unit=st.text(max_size=20))
@settings(max_examples=60, deadline=None)
def test_a_coverage_that_changes_moves_no_unit_that_stays_in(before: float, after: float, unit: str) -> None:
    definition = pair()

    first = Split(definition, State(coverages=(before,))).assign(unit)
    second = Split(definition, State(coverages=(before, after))).assign(unit)

    if first.counts and second.counts:
        assert first.variant == second.variant
    if first.counts and after >= before:
        assert second.counts


def test_a_unit_outside_gets_the_control_and_is_not_counted() -> None:
    split = Split(pair(), State(coverages=(0.5,)))

    outside = [given for given in (split.assign(f"u{i}") for i in range(200)) if not given.counts]

    assert 60 < len(outside) < 140
    assert {(one.variant, one.reason, one.propensity) for one in outside} == {("a", "outside_coverage", None)}


def test_a_unit_that_changed_its_variant_is_in_no_cell_and_may_report_both() -> None:
    first, last = at_step(0), at_step(5)
    unit = next(f"u{i}" for i in range(10_000) if first.assign(f"u{i}").counts and first.assign(f"u{i}").variant == "a")

    moved = last.assign(unit)

    assert moved.variant in {"b", "c"}
    assert first.place(unit) == first.place(unit, moved.index) == (0, CANARY.control)
    assert last.place(unit) == last.place(unit, moved.index) == (None, moved.index)
    assert last.place(unit, CANARY.control) == (None, CANARY.control)


@pytest.mark.parametrize("split", [pytest.param(number, id=f"step {number}") for number in range(6)])
def test_the_shares_of_a_cell_are_those_of_its_units(split: int) -> None:
    here = at_step(split)
    found: dict[int, Counter[int]] = defaultdict(Counter)
    for number in range(3000):
        placed = here.place(f"u{number}")
        if placed is not None and placed[0] is not None:
            found[placed[0]][placed[1]] += 1

    assert found
    for cell, counts in found.items():
        for variant, share in enumerate(here.cells[cell]):
            assert abs(counts[variant] - share * counts.total()) <= 5 * (counts.total() ** 0.5)
            assert share > 0 or not counts[variant]


def test_an_outcome_without_a_unit_is_in_no_cell_while_those_of_other_shares_may_come() -> None:
    halves = pair(canary=Canary())
    alike = [Split(halves, State(step=CanaryStep(number, 0, (0, 0)))) for number in range(5)]
    moved = at_step(5)

    assert [split.cell_without_unit(0) for split in alike] == [0, 1, 2, 3, None]
    assert (moved.cell_without_unit(IN_FLIGHT_MS - 1), moved.cell_without_unit(IN_FLIGHT_MS)) == (None, 5)


@pytest.mark.parametrize(
    ("state", "variant", "reason"),
    [
        (State(status="rolled_back", rollback=ROLLBACK, deployment=Deployment("b", 1, "k")), "a", "rolled_back"),
        (State(deployment=Deployment("b", 1, "k")), "b", "deployed"),
        (State(status="archived", deployment=Deployment("b", 1, "k")), "b", "archived"),
        (State(status="archived"), "a", "archived"),
        (State(status="archived", rollback=ROLLBACK, deployment=Deployment("b", 1, "k")), "a", "archived"),
    ],
)
def test_when_nothing_is_tested_every_unit_gets_the_same(state: State, variant: str, reason: str) -> None:
    given = settled(pair(), state)

    assert given is not None
    assert (given.variant, given.reason, given.counts) == (variant, reason, False)


def test_a_running_or_paused_experiment_is_not_settled() -> None:
    assert settled(pair(), State()) is None
    assert settled(pair(), msgspec.structs.replace(State(), status="paused")) is None


def test_an_assignment_takes_less_than_50_microseconds() -> None:
    split = Split(pair(), State())

    def work() -> None:
        for number in range(2000):
            split.assign(f"unit-{number}")

    assert least_cost_s(work, 2000 * 50e-6) < 2000 * 50e-6
