"""Sample ratio mismatch against published figures."""

from __future__ import annotations

import math

import pytest

from app.shadow.srm import ALARM_P_VALUE, chi_square_survival, srm_p_value


# Critical values of the chi-square distribution, as tables print them.
@pytest.mark.parametrize(
    ("statistic", "freedom", "probability"),
    [(3.841459, 1, 0.05), (6.634897, 1, 0.01), (5.991465, 2, 0.05), (7.814728, 3, 0.05), (18.307038, 10, 0.05), (30.143527, 19, 0.05), (43.820196, 19, 0.001), (0, 3, 1)],
)  # fmt: skip
def test_the_survival_function_gives_the_critical_values_of_tables(
    statistic: float, freedom: int, probability: float
) -> None:
    assert chi_square_survival(statistic, freedom) == pytest.approx(probability, rel=1e-6)


@pytest.mark.parametrize("freedom", [1, 2, 3, 8, 19])
def test_the_survival_function_is_the_integral_of_the_density(freedom: int) -> None:
    step, statistic = 0.001, 4.0
    constant = 2 ** (freedom / 2) * math.gamma(freedom / 2)
    tail = math.fsum(
        x ** (freedom / 2 - 1) * math.exp(-x / 2) * step / constant
        for x in (statistic + step * (n + 0.5) for n in range(150_000))
    )

    assert chi_square_survival(statistic, freedom) == pytest.approx(tail, rel=1e-6)


def test_the_known_case_passes_at_the_alarm_level() -> None:
    p_value = srm_p_value([44_700, 45_489], [1, 1])  # Cookie Cats: gate_30 and gate_40

    assert p_value == pytest.approx(0.0086, abs=5e-5)
    assert p_value > ALARM_P_VALUE


def test_a_split_of_51_to_49_is_an_alarm_at_100_000_units() -> None:
    assert srm_p_value([51_000, 49_000], [1, 1]) < ALARM_P_VALUE


def test_expectations_are_scaled_to_what_was_observed() -> None:
    assert srm_p_value([480, 520], [0.5, 0.5]) == srm_p_value([480, 520], [500.0, 500.0])


@pytest.mark.parametrize("observed", [[0, 0], [0, 9], [100, 0]])
def test_few_units_or_variants_say_nothing(observed: list[int]) -> None:
    expected = [1.0, 1.0] if sum(observed) < 10 else [1.0, 0.0]

    assert srm_p_value(observed, expected) == 1.0


def test_units_where_none_can_be_are_certainly_wrong() -> None:
    assert srm_p_value([500, 500, 1], [1, 1, 0]) == 0.0


@pytest.mark.parametrize(
    ("observed", "expected"), [([], []), ([1], [1, 1]), ([-1, 1], [1, 1]), ([1, 1], [1, float("nan")]), ([1, 1], [-1, 1])]
)
def test_what_is_no_count_is_refused(observed: list[int], expected: list[float]) -> None:
    with pytest.raises(ValueError, match=r"variants|counts"):
        srm_p_value(observed, expected)
