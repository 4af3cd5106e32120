"""Thompson weights and the draw that anyone can repeat."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.shadow.bucketing import bucket_of
from app.shadow.posterior import analyse
from app.shadow.srm import chi_square_survival, srm_p_value
from app.shadow.thompson import draw, weights_of

UNITS = 20_000


def test_without_a_floor_a_weight_is_the_probability_of_being_best() -> None:
    weights = weights_of([10, 12, 9], [100, 100, 100], 0.0)

    assert weights == pytest.approx(analyse([10, 12, 9], [100, 100, 100], 0).probability_best, abs=1e-12)


def test_a_beaten_variant_keeps_the_floor_and_the_weights_sum_to_one() -> None:
    weights = weights_of([0, 500, 0], [1000, 1000, 1000], 0.05)

    assert weights == pytest.approx((0.05, 0.9, 0.05), abs=1e-9)
    assert sum(weights) == pytest.approx(1, abs=1e-12)


def test_the_largest_floor_splits_evenly() -> None:
    assert weights_of([1, 50], [100, 100], 0.5) == (0.5, 0.5)


@pytest.mark.parametrize("floor", [-0.01, 0.51, float("nan")])
def test_a_floor_that_leaves_nothing_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="floor"):
        weights_of([1, 2], [10, 10], floor)


def test_a_draw_follows_its_description_to_the_bit() -> None:
    text = b"\x00\x00\x00\x05s\xc3\xa9ed" + b"unit-1"
    place = (int.from_bytes(blake2b(text, digest_size=8, person=b"shieldx-thompson").digest(), "big") >> 11) / 2**53

    assert draw("s\u00e9ed", "unit-1", [place, 1 - place]) == 1
    assert draw("s\u00e9ed", "unit-1", [place + 2**-53, 1 - place]) == 0


def test_draws_of_known_units_never_change() -> None:
    drawn = [draw("seed", f"unit-{number}", (0.2, 0.3, 0.5)) for number in range(12)]

    assert drawn == [1, 0, 1, 1, 0, 2, 2, 1, 0, 2, 2, 2]


def test_units_are_drawn_with_the_weights() -> None:
    weights = (0.05, 0.25, 0.7)
    counts = Counter(draw("seed", str(number), weights) for number in range(UNITS))

    assert srm_p_value([counts[index] for index in range(3)], weights) > 0.001


def test_draws_are_independent_of_the_buckets_of_the_same_seed_and_of_another_seed() -> None:
    even = (0.25,) * 4
    units = [str(number) for number in range(UNITS)]
    for other in ([int(bucket_of("seed", unit) * 4) for unit in units], [draw("seed2", unit, even) for unit in units]):
        table = Counter(zip((draw("seed", unit, even) for unit in units), other, strict=True))
        statistic = sum((table[row, column] - UNITS / 16) ** 2 / (UNITS / 16) for row in range(4) for column in range(4))

        assert chi_square_survival(statistic, 15) > 0.001


def test_where_seed_ends_and_unit_begins_matters() -> None:
    even = (0.01,) * 100

    assert [draw("a", f"b{n}", even) for n in range(9)] != [draw("ab", str(n), even) for n in range(9)]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(any))
def test_no_unit_gets_a_variant_without_weight(seed: str, unit: str, weights: list[float]) -> None:
    assert weights[draw(seed, unit, weights)] > 0


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        draw("seed", "unit", weights)
