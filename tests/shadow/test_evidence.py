"""The e-process on the arm of each success: exact sums, rounding that never helps, and what it decides."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.shadow import evidence
from app.shadow.evidence import (
    INTERPOLATION_NANO,
    LOG_RATIO_MAX,
    NANO,
    POINTS,
    SUCCESSES_MAX,
    SUM_FIELDS,
    crossed,
    e_value,
    harm_e_value,
    increments,
    no_difference,
    sums_of,
)

ALPHA = 0.02
SHARES = st.floats(0.001, 0.999)
SUCCESSES = st.lists(st.tuples(SHARES, st.booleans()), max_size=40)


def summed(successes: list[tuple[float, bool]]) -> tuple[int, ...]:
    rows = [increments(share, challenger=challenger) for share, challenger in successes]
    return tuple(map(sum, zip(*rows, strict=True))) if rows else (0,) * SUM_FIELDS


def exact_log_e(successes: list[tuple[float, bool]], r0: float, side: int) -> float:
    """Return log E from its definition, success by success, without any sums."""

    def chance(share: float, log_ratio: float, *, challenger: bool) -> float:
        ratio = math.exp(log_ratio)
        return (share * ratio if challenger else 1 - share) / (share * ratio + 1 - share)

    logs = []
    for move, log_weight in zip(evidence._BETS, evidence._LOG_WEIGHTS, strict=True):
        place = math.log(r0) + side * float(move)
        if abs(place) <= LOG_RATIO_MAX:
            logs.append(
                log_weight
                + math.fsum(
                    math.log(chance(share, place, challenger=arm)) - math.log(chance(share, math.log(r0), challenger=arm))
                    for share, arm in successes
                )
            )
    return max(logs) + math.log(math.fsum(math.exp(one - max(logs)) for one in logs))


@settings(max_examples=60, deadline=None)
@given(SUCCESSES, st.sampled_from([1.0, 1.05, 0.9, 3.0]), st.sampled_from([1, -1]))
def test_the_evidence_is_the_product_it_is_defined_as_and_never_above_it(
    successes: list[tuple[float, bool]], r0: float, side: int
) -> None:
    found = (e_value if side == 1 else harm_e_value)(summed(successes), r0)

    exact = exact_log_e(successes, r0, side)
    assert math.log(found) <= exact + 1e-12
    assert math.log(found) == pytest.approx(exact, abs=1e-6)


def test_a_million_successes_of_many_shares_cost_a_hundredth_of_a_nat() -> None:
    source = random.Random(3)
    many = []
    for _ in range(50):
        share, times = source.uniform(0.05, 0.95), source.randrange(40_000)
        hits = round(times * share * 1.005 / (share * 1.005 + 1 - share))
        many += [(share, True, hits), (share, False, times - hits)]

    sums = np.sum([np.array(increments(share, challenger=arm), dtype=object) * times for share, arm, times in many], axis=0)
    found = math.log(e_value(tuple(sums)))

    logs = [
        weight
        + math.fsum(times * ((move if arm else 0.0) - math.log1p(share * math.expm1(move))) for share, arm, times in many)
        for move, weight in zip(evidence._BETS.tolist(), evidence._LOG_WEIGHTS.tolist(), strict=True)
    ]
    exact = max(logs) + math.log(math.fsum(math.exp(one - max(logs)) for one in logs))
    assert exact - 0.01 < found <= exact


@given(SUCCESSES, st.randoms())
@settings(max_examples=30, deadline=None)
def test_sums_are_the_same_in_any_order_on_any_replica(successes: list[tuple[float, bool]], source: random.Random) -> None:
    shuffled = successes[:]
    source.shuffle(shuffled)
    cut = len(shuffled) // 3

    merged = tuple(map(sum, zip(summed(shuffled[:cut]), summed(shuffled[cut:]), strict=True)))

    assert merged == summed(successes)


@given(SHARES, st.integers(0, 500), st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_sums_of_one_share_are_those_of_its_successes(share: float, challenger: int, control: int) -> None:
    one_by_one = summed([(share, True)] * challenger + [(share, False)] * control)

    assert sums_of(share, challenger, control) == one_by_one


def test_the_interpolated_term_is_within_the_stated_error_for_every_share_and_ratio() -> None:
    places = np.linspace(-LOG_RATIO_MAX, LOG_RATIO_MAX, 401)
    rows = evidence._lagrange(places)
    shares = np.concatenate([np.linspace(0, 1, 201), np.geomspace(1e-6, 0.1, 40), 1 - np.geomspace(1e-6, 0.1, 40)])

    exact = np.log1p(shares[:, None] * np.expm1(places))
    interpolated = np.log1p(shares[:, None] * np.expm1(evidence._POINTS)) @ rows.T

    assert np.abs(interpolated - exact).max() * NANO < INTERPOLATION_NANO / 4


def test_the_theorem_on_analytic_functions_bounds_the_interpolation_error_for_every_share() -> None:
    """Trefethen, theorem 8.2: 4 M rho^-n / (rho - 1), M the largest value on the Bernstein ellipse of rho."""
    height = 2.9  # of the ellipse: below pi, where the first singularity is
    rho = (height + math.hypot(height, LOG_RATIO_MAX)) / LOG_RATIO_MAX
    turn = np.exp(1j * np.linspace(0, 2 * np.pi, 721))
    ellipse = LOG_RATIO_MAX * (rho * turn + 1 / (rho * turn)) / 2
    shares = np.concatenate([np.linspace(0, 1, 401), np.geomspace(1e-6, 0.1, 60), 1 - np.geomspace(1e-6, 0.1, 60)])

    largest = np.abs(np.log(1 + shares[:, None] * np.expm1(ellipse))).max()

    assert 4 * largest * rho ** -(POINTS - 1) / (rho - 1) * NANO < INTERPOLATION_NANO


def test_the_absolute_lagrange_coefficients_sum_to_less_than_is_stated() -> None:
    assert (
        np.abs(evidence._lagrange(np.linspace(-LOG_RATIO_MAX, LOG_RATIO_MAX, 2001))).sum(axis=1).max()
        < evidence.LEBESGUE_MAX
    )


def test_the_weights_of_the_bets_sum_to_one() -> None:
    assert math.fsum(np.exp(evidence._LOG_WEIGHTS)) == pytest.approx(1, abs=1e-12)
    assert evidence._BETS.min() > 0


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("r0", [1.0, 1.05])
def test_the_expected_factor_of_one_success_is_at_most_one_when_the_ratio_is_at_most_r0(share: float, r0: float) -> None:
    before = sums_of(share, 7, 5)
    both = [tuple(map(sum, zip(before, increments(share, challenger=arm), strict=True))) for arm in (True, False)]

    for ratio in (0.5 * r0, 0.99 * r0, r0):
        chance = share * ratio / (share * ratio + 1 - share)
        assert chance * e_value(both[0], r0) + (1 - chance) * e_value(both[1], r0) <= e_value(before, r0)


def test_without_successes_there_is_no_evidence_either_way() -> None:
    nothing = (0,) * SUM_FIELDS

    assert e_value(nothing) == pytest.approx(1, abs=1e-12)
    assert harm_e_value(nothing) == pytest.approx(1, abs=1e-12)


def test_harm_is_evidence_with_the_sides_swapped() -> None:
    assert harm_e_value(sums_of(0.3, 40, 160)) == pytest.approx(e_value(sums_of(0.7, 160, 40)), rel=1e-6)


def test_more_successes_of_the_challenger_are_more_evidence() -> None:
    found = [e_value(sums_of(0.5, hits, 500)) for hits in range(400, 700, 20)]

    assert found == sorted(found)
    assert found[0] < 1 < 1 / ALPHA < found[-1]


def test_overwhelming_evidence_is_a_finite_number() -> None:
    assert e_value(sums_of(0.5, SUCCESSES_MAX, 0)) < math.inf
    assert harm_e_value(sums_of(0.5, SUCCESSES_MAX, 0)) >= 0


def test_several_challengers_need_as_many_times_the_evidence() -> None:
    assert crossed(50.1, ALPHA)
    assert not crossed(49.9, ALPHA)
    assert not crossed(50.1, ALPHA, challengers=2)
    assert crossed(100.1, ALPHA, challengers=2)


def test_no_difference_is_said_when_every_challenger_is_shown_to_lift_too_little() -> None:
    flat, worse, undecided = sums_of(0.5, 20_000, 20_000), sums_of(0.5, 900, 1_200), sums_of(0.5, 100, 100)

    assert no_difference([flat], 0.05, ALPHA)
    assert no_difference([flat, worse], 0.05, ALPHA)
    assert not no_difference([flat, undecided], 0.05, ALPHA)
    assert not no_difference([flat], 0.005, ALPHA)


def test_a_success_that_could_not_have_been_assigned_is_refused() -> None:
    for share, arm in ((0.0, True), (1.0, False), (-0.1, True), (1.1, False), (math.nan, True)):
        with pytest.raises(ValueError, match="share"):
            increments(share, challenger=arm)


@pytest.mark.parametrize(
    "sums", [(), (0,) * (SUM_FIELDS - 1), (-1,) + (0,) * (SUM_FIELDS - 1), (SUCCESSES_MAX, 1) + (0,) * POINTS]
)
def test_sums_that_are_no_statistic_are_refused(sums: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="statistic"):
        e_value(sums)


@pytest.mark.parametrize("r0", [0.0, -1.0, 8.0, 0.1, math.nan, math.inf])
def test_a_ratio_out_of_range_is_refused(r0: float) -> None:
    with pytest.raises(ValueError, match="r0"):
        e_value((0,) * SUM_FIELDS, r0)


@pytest.mark.parametrize(("alpha", "challengers"), [(0.0, 1), (1.0, 1), (math.nan, 1), (0.02, 0)])
def test_a_level_that_is_no_probability_is_refused(alpha: float, challengers: int) -> None:
    with pytest.raises(ValueError, match="alpha"):
        crossed(60.0, alpha, challengers)
