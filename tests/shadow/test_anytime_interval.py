"""The lift's interval that holds at every look."""

from __future__ import annotations

import random

import pytest

from app.shadow.anytime_interval import lifts_of
from app.shadow.evidence import SUM_FIELDS, e_value, harm_e_value, increments, sums_of
from tests.cost import least_cost_s

ALPHA = 0.05


@pytest.mark.parametrize(
    ("share", "hits", "control"), [(0.5, 120, 100), (0.5, 1200, 1000), (0.2, 300, 900), (0.9, 100, 40), (0.5, 10**6, 10**6)]
)
def test_the_ends_are_where_the_evidence_reaches_its_threshold(share: float, hits: int, control: int) -> None:
    sums = sums_of(share, hits, control)

    (found,) = lifts_of([sums], ALPHA)

    assert found.estimate == pytest.approx(hits * (1 - share) / (control * share) - 1, abs=1e-6)
    assert found.high is not None
    assert found.low < found.estimate < found.high
    assert e_value(sums, 1 + found.low) == pytest.approx(2 / ALPHA, rel=0.01)
    assert harm_e_value(sums, 1 + found.high) == pytest.approx(2 / ALPHA, rel=0.01)


def test_without_data_nothing_is_ruled_out() -> None:
    (found,) = lifts_of([(0,) * SUM_FIELDS], ALPHA)

    assert found == (None, -1.0, None)


def test_one_side_without_success_leaves_the_interval_open_on_one_side() -> None:
    only_challenger, only_control = lifts_of([sums_of(0.5, 30, 0), sums_of(0.5, 0, 30)], ALPHA)

    assert only_challenger.estimate is only_challenger.high is only_control.estimate is None
    assert only_challenger.low > 0
    assert only_control.low == -1.0
    assert only_control.high is not None
    assert only_control.high < 0


def test_a_stricter_level_is_a_wider_interval() -> None:
    sums = sums_of(0.5, 500, 450)
    (wide,), (narrow,) = lifts_of([sums], 0.01), lifts_of([sums], 0.1)

    assert wide.low < narrow.low
    assert narrow.high is not None
    assert wide.high is not None
    assert narrow.high < wide.high


def test_the_interval_holds_the_truth_at_every_look_in_all_but_a_few_runs_though_shares_vary() -> None:
    source, ratio = random.Random(5), 1.2
    runs, missed = [[0] * SUM_FIELDS for _ in range(40)], set()
    for success in range(1, 301):
        for number, sums in enumerate(runs):
            share = round(0.2 + 0.6 * source.random(), 2)
            arm = source.random() < share * ratio / (share * ratio + 1 - share)
            runs[number] = [one + other for one, other in zip(sums, increments(share, challenger=arm), strict=True)]
        if success % 20 == 0:
            found = enumerate(lifts_of(runs, ALPHA))
            missed |= {
                number for number, one in found if not one.low <= ratio - 1 <= (9.0 if one.high is None else one.high)
            }

    assert len(missed) <= 6  # at most 5 % of the runs may miss; more than 6 of 40 would with probability below 0.4 %


def test_nineteen_challengers_take_milliseconds() -> None:
    statistics = [sums_of(0.5, 1000 + 20 * number, 1000) for number in range(19)]

    assert least_cost_s(lambda: lifts_of(statistics, ALPHA), 0.02) < 0.02


@pytest.mark.parametrize("alpha", [0.0, 1.0, float("nan")])
def test_a_level_that_is_no_probability_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        lifts_of([(0,) * SUM_FIELDS], alpha)


def test_no_challengers_have_no_lifts() -> None:
    assert lifts_of([], ALPHA) == ()
