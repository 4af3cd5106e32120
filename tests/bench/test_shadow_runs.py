"""What is done for many experiments at once is what the scalar code does for each."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from app.shadow.evidence import SUM_FIELDS, crossed, e_value, increments, sums_of
from app.shadow.posterior import analyse
from app.shadow.thompson import weights_of
from bench import shadow
from bench.shadow_cases import CASES, fixed_horizon
from bench.shadow_report import Rate, merge
from bench.shadow_runs import (
    ALPHA,
    DOUBT,
    FLOOR,
    LIFT_MIN,
    NEVER,
    PROBABILITY,
    SAMPLES_MIN,
    Case,
    _Runs,
    approximate_second_best,
    gates_hold,
    increments_of_all,
    least_hits,
    log_evidence,
    seeds_rule_holds,
    simulate,
    threshold_of,
    weights_of_all,
)

ROWS = 60


def counts(seed: int, variants: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Draw counts near the border of the seed's rule: rates alike, samples from 90 to 30,000."""
    random = np.random.default_rng(seed)
    samples = np.exp(random.uniform(np.log(90), np.log(30_000), (ROWS, variants))).astype(np.int64)
    rates = np.exp(random.uniform(np.log(0.005), np.log(0.6), (ROWS, 1))) * random.uniform(1, 1.3, (ROWS, variants))
    return random.binomial(samples, np.minimum(rates, 1)), samples


def scalar_gates(successes: list[int], samples: list[int]) -> list[bool]:
    found = analyse(successes, samples, 0)
    enough = [min(samples[0], count) >= SAMPLES_MIN for count in samples[1:]]
    lifts = [lift is not None and lift >= LIFT_MIN for lift in found.lift[1:]]
    return [a and b and p > PROBABILITY for a, b, p in zip(enough, lifts, found.probability_best[1:], strict=True)]


def test_evidence_of_many_is_that_of_each() -> None:
    random = np.random.default_rng(3)
    sums = []
    for _ in range(ROWS):
        share, hits, control = random.uniform(0.05, 0.95), *random.integers(1, 3_000, 2).tolist()
        row = [0] * SUM_FIELDS
        for arm, times in ((True, hits), (False, control)):
            row = [one + times * other for one, other in zip(row, increments(float(share), challenger=arm), strict=True)]
        sums.append(row)
    table = np.array(sums)

    found = log_evidence(table[:, 0], table[:, :2].sum(axis=1), table[:, 2:])

    expected = [min(math.log(max(e_value(row), 1e-300)), 700) for row in sums]
    assert np.clip(found, -690, 700) == pytest.approx(np.clip(expected, -690, 700), abs=1e-9)


def test_increments_of_many_are_those_of_each_to_the_integer() -> None:
    shares = np.random.default_rng(8).uniform(0.01, 0.99, 500)

    found = increments_of_all(shares)

    assert found.tolist() == [list(increments(share, challenger=True)[2:]) for share in shares.tolist()]


@pytest.mark.parametrize("challengers", [1, 3])
def test_the_least_hits_of_a_fixed_split_are_where_the_evidence_suffices_and_one_less_does_not(challengers: int) -> None:
    table = least_hits(0.5, 3_000, challengers)

    for total in (0, 1, 9, 30, 200, 1_234, 3_000):
        least = int(table[total])
        if least <= total:
            assert crossed(e_value(sums_of(0.5, least, total - least)), ALPHA, challengers)
        assert not crossed(e_value(sums_of(0.5, least - 1, total - least + 1)), ALPHA, challengers)


def test_weights_of_many_are_those_of_each() -> None:
    successes, samples = counts(4)

    found = weights_of_all(successes, samples)

    each = [weights_of(x, n, FLOOR) for x, n in zip(successes.tolist(), samples.tolist(), strict=True)]
    assert found == pytest.approx(np.array(each), abs=1e-9)


@pytest.mark.parametrize("variants", [2, 4])
def test_the_conditions_of_many_are_those_of_each(variants: int) -> None:
    successes, samples = counts(5, variants)

    held = gates_hold(successes, samples)

    assert held.tolist() == [scalar_gates(x, n) for x, n in zip(successes.tolist(), samples.tolist(), strict=True)]
    assert 0 < held.sum() < held.size


def test_the_seeds_rule_of_many_is_that_of_each_though_it_is_screened_by_an_approximation() -> None:
    successes, samples = counts(6)

    held = seeds_rule_holds(successes, samples)

    assert held.tolist() == [scalar_gates(x, n)[0] for x, n in zip(successes.tolist(), samples.tolist(), strict=True)]
    assert 0 < held.sum() < held.size


def test_the_approximation_is_as_good_near_the_border_as_the_screen_takes_it_to_be() -> None:
    for seed in range(10, 30):
        successes, samples = counts(seed)
        chance = approximate_second_best(successes, samples)
        for index in np.flatnonzero(np.abs(chance - PROBABILITY) < 0.04)[:12]:
            x, n = successes[index].tolist(), samples[index].tolist()
            exact = analyse(x, n, 0).probability_best[1]

            assert abs(chance[index] - exact) < DOUBT / (min(x) + 1)


@pytest.mark.parametrize("challengers", [1, 4])
def test_the_threshold_is_the_one_of_the_code_under_test(challengers: int) -> None:
    found = threshold_of(challengers)

    assert math.exp(found) == pytest.approx(challengers / ALPHA, rel=1e-6)
    assert crossed(math.exp(found), ALPHA, challengers)


@pytest.mark.parametrize("thompson", [False, True])
def test_a_block_of_runs_crosses_where_the_scalar_code_does(thompson: bool) -> None:
    case = Case(name="t", start=(0.1, 0.1, 0.4), end=(0.1, 0.1, 0.4), thompson=thompson, outcomes=700)
    random = np.random.default_rng(9)
    arms = random.integers(0, 3, (700, 2))
    hits = random.random((700, 2)) < np.array(case.start)[arms]
    state = _Runs(case, 2)

    for first in range(0, 700, 300):
        state.play(first, arms[first : first + 300], hits[first : first + 300])

    for run in range(2):
        evidence = winner = NEVER
        samples, successes, over = [0] * 3, [0] * 3, [False] * 2
        sums = [[0] * SUM_FIELDS for _ in range(2)]
        for number in range(700):
            arm = int(arms[number, run])
            samples[arm] += 1
            if hits[number, run]:
                successes[arm] += 1
                for index in range(2):
                    if arm in (0, index + 1):
                        adds = increments(0.5, challenger=arm != 0)
                        sums[index] = [one + other for one, other in zip(sums[index], adds, strict=True)]
                        over[index] |= crossed(e_value(sums[index]), ALPHA, 2)
            if any(over) and evidence == NEVER:
                evidence = number + 1
            if (
                any(over)
                and winner == NEVER
                and any(a and b for a, b in zip(over, scalar_gates(successes, samples), strict=True))
            ):
                winner = number + 1
        assert (state.first["evidence"][run], state.first["winner"][run]) == (evidence, winner)
        assert winner != NEVER


def test_the_same_seed_plays_the_same_runs_and_another_others() -> None:
    case = Case(name="t", start=(0.1, 0.3), end=(0.1, 0.3), thompson=True, outcomes=400)

    assert simulate(case, 5, 1) == simulate(case, 5, 1)
    assert simulate(case, 5, 1).evidence != simulate(case, 5, 2).evidence


def test_thompson_sampling_gives_up_less_than_a_fixed_split() -> None:
    regret = [
        sum(simulate(Case(name="t", start=(0.1, 0.4), end=(0.1, 0.4), thompson=thompson, outcomes=1_500), 6, 1).regret)
        for thompson in (False, True)
    ]

    assert regret[1] < regret[0] / 2


@pytest.mark.parametrize(
    ("challenger", "alpha", "two_sided", "samples"),
    [(0.12, 0.05, True, 3_841), (0.12, 0.02, False, 4_102), (0.105, 0.05, True, 57_763), (0.105, 0.02, False, 61_695)],
)
def test_the_fixed_horizon_is_that_of_the_z_test(challenger: float, alpha: float, two_sided: bool, samples: int) -> None:
    assert fixed_horizon(0.1, challenger, alpha, two_sided=two_sided) == pytest.approx(samples, abs=1)


def test_wilsons_interval_is_the_published_one() -> None:
    assert Rate(10, 100).interval == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert Rate(0, 2_000).interval[0] == 0.0


def test_a_chunk_that_was_played_twice_counts_once() -> None:
    one = simulate(Case(name="t", start=(0.1, 0.3), end=(0.1, 0.3), thompson=False, outcomes=300), 5, 1)
    other = simulate(one.case, 5, 2)

    (merged,) = merge([one, other, one])

    assert merged.runs == 10
    assert merged.winner == one.winner + other.winner


def test_a_quick_run_prints_every_case_and_draws_its_plots(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["shadow", "--quick", "--out", str(tmp_path)])

    assert shadow.main() == 0

    printed = capsys.readouterr().out
    assert all(name in printed for name in CASES)
    plots = sorted(tmp_path.glob("*.svg"))
    assert len(plots) == 5
    for plot in plots:
        ET.fromstring(plot.read_text())  # noqa: S314 - it was made here


def test_a_case_that_there_is_not_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["shadow", "--cases", "no such", "--out", str(tmp_path)])

    with pytest.raises(SystemExit):
        shadow.main()
