"""P(best) by simulation beside the exact one."""

from __future__ import annotations

import pytest

from app.shadow.monte_carlo import DRAWS_MAX, SEED_MAX, probability_best_mc
from app.shadow.posterior import analyse
from tests.cost import least_cost_s


def test_many_draws_agree_with_the_exact_probabilities() -> None:
    successes, samples = [100, 110, 95, 0], [1000, 1000, 1000, 3]

    drawn = probability_best_mc(successes, samples, 300_000, 7)

    assert drawn == pytest.approx(analyse(successes, samples, 0).probability_best, abs=0.0045)
    assert sum(drawn) == pytest.approx(1)


def test_the_same_seed_gives_the_same_answer_and_another_another() -> None:
    one, again, other = (probability_best_mc([10, 12], [100, 100], 10_001, seed) for seed in (1, 1, 2))

    assert one == again
    assert one != other


def test_ten_thousand_draws_of_twenty_variants_take_less_than_100_ms() -> None:
    def work() -> object:
        return probability_best_mc([100 + n for n in range(20)], [1000] * 20, 10_000, 1)

    assert least_cost_s(work, 0.1) < 0.1


@pytest.mark.parametrize(("draws", "seed"), [(0, 1), (-5, 1), (DRAWS_MAX + 1, 1), (100, -1), (100, SEED_MAX + 1)])
def test_draws_and_seeds_out_of_range_are_refused(draws: int, seed: int) -> None:
    with pytest.raises(ValueError, match=r"draws|seed"):
        probability_best_mc([1, 2], [10, 10], draws, seed)
