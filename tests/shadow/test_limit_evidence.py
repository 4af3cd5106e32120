"""Evidence that a rate is above an absolute limit."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.shadow.evidence import crossed
from app.shadow.limit_evidence import SAMPLES_MAX, limit_e_value

ALPHA = 0.02


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0001, 0.9999), st.integers(0, 2000), st.integers(0, 2000))
def test_the_expected_factor_of_one_sample_is_one_at_the_limit(limit: float, failures: int, passed: int) -> None:
    before = limit_e_value(failures, failures + passed, limit)
    failed, fine = (
        limit_e_value(failures + 1, failures + passed + 1, limit),
        limit_e_value(failures, failures + passed + 1, limit),
    )

    if before < 1e300 and failed < 1e300:
        assert limit * failed + (1 - limit) * fine == pytest.approx(before, rel=1e-7)
        assert failed >= fine


def test_no_sample_is_no_evidence() -> None:
    assert limit_e_value(0, 0, 0.02) == pytest.approx(1)


def test_a_rate_far_above_the_limit_is_found_within_a_few_dozen_samples() -> None:
    assert crossed(limit_e_value(8, 40, 0.02), ALPHA)
    assert not crossed(limit_e_value(1, 40, 0.02), ALPHA)


def test_a_95th_percentile_over_its_limit_is_more_than_5_percent_of_slow_calls() -> None:
    assert crossed(limit_e_value(120, 1000, 0.05), ALPHA)
    assert not crossed(limit_e_value(50, 1000, 0.05), ALPHA)


def test_runs_at_the_limit_rarely_reach_the_threshold_though_each_sample_is_looked_at() -> None:
    source, crossings = random.Random(11), 0
    for _ in range(60):
        failures = 0
        for count in range(1, 401):
            failures += source.random() < 0.1
            if count % 5 == 0 and crossed(limit_e_value(failures, count, 0.1), 0.1):
                crossings += 1
                break

    assert crossings <= 13  # at most 10 % of the runs may; 14 of 60 would happen with probability 0.2 %


def test_overwhelming_counts_give_finite_numbers() -> None:
    assert limit_e_value(SAMPLES_MAX, SAMPLES_MAX, 0.01) < math.inf
    assert limit_e_value(0, SAMPLES_MAX, 0.01) >= 0


@pytest.mark.parametrize(
    ("failures", "samples", "limit"),
    [(-1, 5, 0.1), (6, 5, 0.1), (0, SAMPLES_MAX + 1, 0.1), (1, 5, 0.0), (1, 5, 1.0), (1, 5, math.nan)],
)
def test_what_makes_no_sense_is_refused(failures: int, samples: int, limit: float) -> None:
    with pytest.raises(ValueError, match=r"failures|limit"):
        limit_e_value(failures, samples, limit)
