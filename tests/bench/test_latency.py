"""Percentiles and the arrays they are read from."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.latency import SAMPLES_MIN, Samples, percentile


@given(
    st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=300),
    st.sampled_from([0.5, 0.95, 0.99, 0.999, 1.0]),
)
def test_percentile_is_the_smallest_sample_that_enough_samples_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(np.sort(np.array(values)), share)

    enough = math.ceil(share * len(values))
    candidates = [one for one in values if sum(other <= one for other in values) >= enough]
    assert found == min(candidates)


def test_percentiles_of_one_to_a_thousand_are_their_ranks() -> None:
    ordered = np.arange(1, 1001, dtype=np.float64)

    found = [percentile(ordered, share) for share in (0.5, 0.95, 0.99, 0.999, 1.0)]

    assert found == [500, 950, 990, 999, 1000]


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile(np.array([], dtype=np.float64), 0.5)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_percentile_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        percentile(np.array([1.0]), share)


def test_summary_is_in_milliseconds_and_does_not_depend_on_order() -> None:
    samples = Samples()
    for milliseconds in (3, 1, 2, 100):
        samples.record(milliseconds / 1000)

    summary = samples.summary()

    assert (summary.count, summary.p50_ms, summary.p99_ms, summary.max_ms) == (4, 2.0, 100.0, 100.0)
    assert summary.mean_ms == pytest.approx(26.5)


def test_samples_beyond_the_first_array_are_kept() -> None:
    samples = Samples()
    count = 3 * SAMPLES_MIN
    for number in range(count):
        samples.record(number / 1000)

    summary = samples.summary()

    assert len(samples) == count
    assert summary.max_ms == pytest.approx(count - 1)


def test_summary_of_nothing_is_zero() -> None:
    assert Samples().summary().p99_9_ms == 0.0
