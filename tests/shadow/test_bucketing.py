"""The hash of a fixed split against GrowthBook's published vectors, and what its ranges promise."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.shadow.bucketing import BUCKETS, bucket_of, index_in, ranges_of, shares_of
from app.shadow.srm import chi_square_survival, srm_p_value

# The vectors of hash version 2 in packages/sdk-js/test/cases.json of growthbook/growthbook.
HASHES = [
    ("seed", "a", 0.0505),
    ("seed", "b", 0.2696),
    ("foo", "ab", 0.2575),
    ("foo", "def", 0.2019),
    ("89123klj", "8952klfjas09ujkasdf", 0.124),
    ("90850943850283058242805", "123", 0.7516),
    ("()**(%$##$%#$#", '___)((*":&', 0.0128),
]
# Those of getBucketRange whose input is valid here: GrowthBook mends bad weights and coverage, we refuse them.
RANGES = [
    ([1, 1], 1, [(0, 0.5), (0.5, 1)]),
    ([1, 1], 0.5, [(0, 0.25), (0.5, 0.75)]),
    ([1, 1], 0, [(0, 0), (0.5, 0.5)]),
    ([1, 1, 1, 1], 1, [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]),
    ([0.4, 0.6], 1, [(0, 0.4), (0.4, 1)]),
    ([0.2, 0.3, 0.5], 1, [(0, 0.2), (0.2, 0.5), (0.5, 1)]),
    ([0.2, 0.3, 0.5], 0.2, [(0, 0.04), (0.2, 0.26), (0.5, 0.6)]),
]
# chooseVariation: bucket, ranges, variant.
EVEN = ((0.0, 0.5), (0.5, 1.0))
REDUCED = ((0.0, 0.25), (0.5, 0.75))
ZERO = ((0.0, 0.5), (0.5, 0.5), (0.5, 1.0))
CHOICES = [
    (0.2, EVEN, 0),
    (0.7, EVEN, 1),
    (0.2, REDUCED, 0),
    (0.4, REDUCED, None),
    (0.6, REDUCED, 1),
    (0.8, REDUCED, None),
    (0.5, EVEN, 1),
    (0.5, ZERO, 2),
]
WEIGHTS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=20)
UNITS = 20_000


@pytest.mark.parametrize(("seed", "unit", "bucket"), HASHES)
def test_the_hash_gives_the_published_buckets(seed: str, unit: str, bucket: float) -> None:
    assert bucket_of(seed, unit) == bucket


@pytest.mark.parametrize(("weights", "coverage", "ranges"), RANGES)
def test_weights_and_coverage_give_the_published_ranges(
    weights: list[float], coverage: float, ranges: list[tuple[float, float]]
) -> None:
    found = ranges_of(weights, coverage)

    assert [pytest.approx(one) for one in ranges] == list(found)


@pytest.mark.parametrize(("bucket", "ranges", "index"), CHOICES)
def test_a_bucket_chooses_the_published_variant(
    bucket: float, ranges: tuple[tuple[float, float], ...], index: int | None
) -> None:
    assert index_in(ranges, bucket) == index


def test_buckets_are_uniform_over_units() -> None:
    counts = Counter(int(bucket_of("checkout-2026", f"user-{number}") * 100) for number in range(UNITS))

    assert srm_p_value([counts[cell] for cell in range(100)], [1.0] * 100) > 0.001


@pytest.mark.parametrize(("one", "other"), [("checkout", "checkout2"), ("exp-1", "exp-2"), ("a", "b"), ("colour", "price")])
def test_two_experiments_share_out_units_independently(one: str, other: str) -> None:
    table = Counter((int(bucket_of(one, unit) * 10), int(bucket_of(other, unit) * 10)) for unit in map(str, range(UNITS)))

    rows = [sum(table[row, column] for column in range(10)) for row in range(10)]
    columns = [sum(table[row, column] for row in range(10)) for column in range(10)]
    expected = {(row, column): rows[row] * columns[column] / UNITS for row in range(10) for column in range(10)}
    statistic = sum((table[cell] - value) ** 2 / value for cell, value in expected.items())
    assert chi_square_survival(statistic, 81) > 0.001


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32))
def test_more_coverage_moves_no_unit_that_was_in(weights: list[float], coverage: float, more: float, unit: int) -> None:
    bucket = bucket_of("seed", str(unit))
    before, after = (index_in(ranges_of(weights, part), bucket) for part in sorted((coverage, more)))

    assert before in (None, after)


@settings(max_examples=12, deadline=None)
@given(WEIGHTS, st.floats(0, 1))
def test_shares_count_the_buckets_that_each_variant_gets(weights: list[float], coverage: float) -> None:
    ranges = ranges_of(weights, coverage)

    counts = Counter(index_in(ranges, number / BUCKETS) for number in range(BUCKETS))
    assert shares_of(ranges) == tuple(counts[index] / BUCKETS for index in range(len(weights)))


@settings(max_examples=40, deadline=None)
@given(WEIGHTS)
def test_with_full_coverage_all_units_are_in_and_shares_are_within_a_bucket_of_the_weights(weights: list[float]) -> None:
    shares = shares_of(ranges_of(weights))

    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert all(abs(share - weight / sum(weights)) <= 1.001 / BUCKETS for share, weight in zip(shares, weights, strict=True))


@pytest.mark.parametrize(
    ("weights", "coverage"),
    [([], 1), ([0, 0], 1), ([1, -1], 1), ([1, float("nan")], 1), ([1, float("inf")], 1), ([1e308, 1e308], 1), ([1, 1], 1.5), ([1, 1], -0.2), ([1, 1], float("nan"))],
)  # fmt: skip
def test_weights_and_coverage_that_make_no_sense_are_refused(weights: list[float], coverage: float) -> None:
    with pytest.raises(ValueError, match=r"weights|coverage"):
        ranges_of(weights, coverage)
