"""What outcomes add, and that the sums mean what the outcomes meant."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from app.shadow.assignment import propensities_of, stages_of
from app.shadow.definition import Canary, State, Variant
from app.shadow.evidence import increments
from app.shadow.tallies import (
    Class,
    added,
    evidence_of,
    expected_of,
    latency_bucket,
    percentile_ms,
    share_of,
    statistic,
)
from tests.shadow.conftest import pair

THREE = (Variant("a", control=True), Variant("b"), Variant("c"))


def total(parts: list[list[str | int]]) -> dict[str, int]:
    """Add up what outcomes add."""
    sums: Counter[str] = Counter()
    for fields in parts:
        for field, amount in zip(fields[1::2], fields[2::2], strict=True):
            sums[str(field)] += int(amount)
    return dict(sums)


@pytest.mark.parametrize("allocation", ["fixed", "thompson"])
def test_the_statistic_of_sums_is_the_sum_of_the_statistics(allocation: str) -> None:
    definition = pair(variants=THREE, allocation=allocation, canary=Canary((10.0, 100.0)) if allocation == "fixed" else None)
    stages = [propensities_of(ranges) for ranges in stages_of(definition, State())]
    versions = stages if allocation == "fixed" else [(0.2, 0.3, 0.5), (0.6, 0.3, 0.1)]
    pick = random.Random(7)
    outcomes = [(pick.choice([i for i in range(3) if versions[v][i]]), v) for v in pick.choices([0, 1], k=60)]

    totals = total(
        [
            ["", *evidence_of(definition, Class(index, success=True, shares=version), versions[version])[1][2:]]
            for index, version in outcomes
        ]
    )

    for challenger in definition.challengers:
        expected = [0] * 26
        for index, version in outcomes:
            share = share_of(versions[version], 0, challenger)
            if index in {0, challenger} and 0 < share < 1:
                expected = [a + b for a, b in zip(expected, increments(share, challenger=index == challenger), strict=True)]
        assert statistic(definition, totals, dict(enumerate(stages)), "S", challenger) == tuple(expected)


def test_an_outcome_without_known_shares_counts_and_is_no_evidence() -> None:
    definition, one = pair(allocation="thompson"), Class(1, success=True, error=True)

    fields = total([added(one)])

    assert evidence_of(definition, one, ()) == []
    assert fields == {"n1": 1, "s1": 1, "e1": 1, "unshared": 1}


@pytest.mark.parametrize("fate", ["late", "quarantined"])
def test_what_is_kept_apart_adds_nothing_else(fate: str) -> None:
    one = Class(1, fate, success=True, shares=0)  # type: ignore[arg-type]

    assert (added(one), evidence_of(pair(), one, ())) == (["", fate, 1], [])


def test_expectations_follow_the_cells_or_the_propensities_of_units_with_an_outcome() -> None:
    fixed, thompson = pair(), pair(allocation="thompson")
    first = [
        evidence_of(thompson, Class(index, shares=1), weights)[0] for index, weights in ((1, (0.25, 0.75)), (0, (0.5, 0.5)))
    ]

    by_stage = expected_of(fixed, {"n0": 40, "n1": 90, "X0:0": 3, "X0:1": 7}, {0: (0.5, 0.5)})
    by_unit = expected_of(thompson, total([piece[1:] for piece in first]), {})

    assert by_stage == ((3, 7), (5.0, 5.0))
    assert by_unit == ((1, 1), (0.75, 1.25))


@pytest.mark.parametrize("latency_ms", [0.0, 1.0, 1.01, 3.0, 100.0, 10_000_000.0])
def test_a_bucket_is_at_most_19_percent_above_the_latency(latency_ms: float) -> None:
    upper = 2 ** (latency_bucket(latency_ms) / 4)

    assert latency_ms <= upper * (1 + 1e-9)
    assert upper <= max(1.0, latency_ms * 1.19)


def test_a_percentile_is_that_of_the_sorted_latencies_within_a_bucket() -> None:
    pick = random.Random(3)
    latencies = sorted(pick.expovariate(1 / 80) + 1 for _ in range(500))
    histogram = Counter(f"1:{latency_bucket(one)}" for one in latencies)

    found = percentile_ms(histogram, 1, 0.95)

    exact = latencies[int(0.95 * 500) - 1]
    assert found is not None
    assert exact <= found <= exact * 1.19
    assert percentile_ms(histogram, 0, 0.95) is None
