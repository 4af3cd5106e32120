"""Many experiments at once, outcome by outcome, decided by the code of `app.shadow` after every outcome.

Counters and statistics are those of the server: integers, the increments of `app.shadow.evidence`, the weights of
`app.shadow.posterior`. What is done for all runs together is proved equal to the scalar code by
`tests/bench/test_shadow_runs.py`: weights, increments, evidence, and the least number of successes with which a fixed
split has enough of it. P(best) of the seed's rule is computed exactly wherever an approximation leaves any doubt about
which side of 0.95 it is on.
"""

from functools import lru_cache
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.shadow import evidence
from app.shadow.evidence import NANO, POINTS, crossed
from app.shadow.posterior import probability_best

ALPHA: Final = 0.02
PROBABILITY: Final = 0.95
SAMPLES_MIN: Final = 100
LIFT_MIN: Final = 0.05
FLOOR: Final = 0.05
BLOCK: Final = 250  # outcomes of all runs that are worked on at once
REWEIGHT_MIN: Final = 100  # outcomes between two versions of Thompson weights, and later a twentieth of all so far
NEVER: Final = -1
# The approximation of P(best) near 0.95 is off by less than this, divided by the lesser number of successes and 1.
DOUBT: Final = 0.04

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated: rates of control and challengers at the first outcome and at the last, linear in between.

    until  when a run may end early; the seed's rule is looked at in runs that go on to the end
    """

    name: str
    start: tuple[float, ...]
    end: tuple[float, ...]
    thompson: bool
    outcomes: int
    until: Literal["end", "evidence", "winner"] = "end"

    @property
    def variants(self) -> int:
        """Control and challengers."""
        return len(self.start)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """When each run first crossed, in outcomes from 1; -1 for never. Chunks of the same case with other seeds add up.

    evidence  the evidence of some challenger reached challengers / alpha
    winner    it had done so, and for that challenger the seed's conditions held: the rule of the product
    seeds     the seed's rule alone held: P(best) above 95 %, 100 samples of each, 5 % lift. Two variants only, runs to
              the end
    regret    successes given up against the best rate in each tenth of the outcomes, summed over the runs
    """

    case: Case
    seed: int
    runs: int
    evidence: list[int]
    winner: list[int]
    seeds: list[int]
    regret: list[float]


def log_evidence(hits: Integers, total: Integers, terms: Integers) -> Floats:
    """Return log E for rows of statistics: challenger's successes, both variants' successes, the 24 terms."""
    bets = evidence._bets(1.0, 1)  # noqa: SLF001 - the rows and weights of the code under test themselves
    exponents = hits[:, None] * evidence._BETS + bets.log_weights  # noqa: SLF001
    exponents -= (terms.astype(float) @ bets.rows.T + total[:, None] * bets.slack) / NANO
    return evidence._log_mean(exponents)  # noqa: SLF001


def increments_of_all(shares: Floats) -> Integers:
    """Return the terms of one success for every share: rows of `app.shadow.evidence.increments` without the counts."""
    found: Integers = np.rint(NANO * np.log1p(shares[..., None] * np.array(evidence._RATIOS))).astype(np.int64)  # noqa: SLF001
    return found


@lru_cache(maxsize=8)
def least_hits(share: float, successes: int, challengers: int) -> Integers:
    """Return, for 0 to `successes` successes of both, the least number of the challenger's with which evidence suffices.

    More of the challenger's among as many is more evidence, so a bisection finds it; successes + 1 where none suffices.
    """
    total = np.arange(successes + 1)
    terms = total[:, None] * increments_of_all(np.array([share]))
    threshold = threshold_of(challengers)
    low, high = np.full(len(total), -1), total + 1
    while (high - low > 1).any():
        middle = np.clip((low + high) // 2, 0, total)
        enough = log_evidence(middle, total, terms) >= threshold
        open_rows = high - low > 1
        high, low = np.where(open_rows & enough, middle, high), np.where(open_rows & ~enough, middle, low)
    return high


def _best(successes: Integers, samples: Integers) -> Floats:
    """Return P(best) of every variant under flat priors, one row for each run."""
    return probability_best(np.asarray(successes + 1, dtype=float), np.asarray(samples - successes + 1, dtype=float))


def weights_of_all(successes: Integers, samples: Integers, floor: float = FLOOR) -> Floats:
    """Return the Thompson weights of every run: rows of `app.shadow.thompson.weights_of`."""
    best = _best(successes, samples)
    found: Floats = floor + (1 - samples.shape[1] * floor) * best
    return found


def approximate_second_best(successes: Integers, samples: Integers) -> Floats:
    """Return P(p_1 > p_0) by Edgeworth's expansion on the log-odds scale; DOUBT says how good it is near 0.95.

    The log-odds of Beta(a, b) have the cumulants psi(a) - psi(b), psi'(a) + psi'(b), psi''(a) - psi''(b), here by the
    asymptotic series of the polygamma functions (Abramowitz and Stegun, 6.3.18 and 6.4.11, 26.2.48 for the expansion).
    """
    a, b = 1 / (successes + 1.0), 1 / (samples - successes + 1.0)
    mean = np.log(b / a) - (a - b) / 2 - (a * a - b * b) / 12
    variance = ((a + b) + (a * a + b * b) / 2 + (a**3 + b**3) / 6).sum(axis=1)
    third = -(a * a - b * b) - (a**3 - b**3)
    deviation = np.sqrt(variance)
    z = (mean[:, 1] - mean[:, 0]) / deviation
    skewness = (third[:, 1] - third[:, 0]) / deviation**3
    # Abramowitz and Stegun, 26.2.17: error below 7.5e-8, and no loop over the elements.
    t = 1 / (1 + 0.2316419 * np.abs(z))
    series = t * (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    tail = density * series
    found: Floats = np.where(z > 0, 1 - tail, tail) + density * skewness * (z * z - 1) / 6
    return found


def gates_hold(successes: Integers, samples: Integers) -> NDArray[np.bool_]:
    """Return for each row and challenger whether the seed's conditions hold: P(best), samples of both, lift."""
    best = _best(successes, samples)
    rates = successes / np.maximum(samples, 1)
    enough = (samples[:, 1:] >= SAMPLES_MIN) & (samples[:, :1] >= SAMPLES_MIN)
    lifted = (rates[:, :1] > 0) & (rates[:, 1:] >= rates[:, :1] * (1 + LIFT_MIN))
    held: NDArray[np.bool_] = enough & lifted & (best[:, 1:] > PROBABILITY)
    return held


def seeds_rule_holds(successes: Integers, samples: Integers) -> NDArray[np.bool_]:
    """Return for each row of two variants whether the seed's rule holds, exactly."""
    held = (samples >= SAMPLES_MIN).all(axis=1) & (successes[:, 0] > 0)
    held &= successes[:, 1] * samples[:, 0] >= successes[:, 0] * samples[:, 1] * (1 + LIFT_MIN)
    rows = np.flatnonzero(held)
    if rows.size:
        chance = approximate_second_best(successes[rows], samples[rows])
        doubtful = np.abs(chance - PROBABILITY) < DOUBT / (successes[rows].min(axis=1) + 1)
        if doubtful.any():
            unclear = rows[doubtful]
            chance[doubtful] = _best(successes[unclear], samples[unclear])[:, 1]
        held[rows] = chance > PROBABILITY
    return held


def threshold_of(challengers: int) -> float:
    """Return the log E from which on `crossed` says yes, found by asking it."""
    low, high = 0.0, 60.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if crossed(float(np.exp(middle)), ALPHA, challengers) else (middle, high)
    return high


class _Runs:
    """The state of the runs of a case that are not over."""

    def __init__(self, case: Case, runs: int) -> None:
        challengers = case.variants - 1
        self.case = case
        self.alive = np.arange(runs)
        self.samples = np.zeros((runs, case.variants), dtype=np.int64)
        self.successes = np.zeros((runs, case.variants), dtype=np.int64)
        self.terms = np.zeros((runs, challengers, POINTS), dtype=np.int64)
        self.crossed = np.zeros((runs, challengers), dtype=bool)
        self.first = {rule: np.full(runs, NEVER) for rule in ("evidence", "winner", "seeds")}
        self.weights = np.full((runs, case.variants), 1 / case.variants)
        self.adds = np.zeros_like(self.terms)
        self.threshold = threshold_of(challengers)
        # The table for a fixed split ends where no run will come: eight standard deviations above the mean.
        mean = 2 / case.variants * case.outcomes * max(*case.start, *case.end)
        self.successes_max = min(case.outcomes, round(mean + 8 * mean**0.5 + 50))
        self._take_increments()

    def _take_increments(self) -> None:
        self.adds = increments_of_all(self.weights[:, 1:] / (self.weights[:, 1:] + self.weights[:, :1]))

    def reweight(self) -> None:
        """Make the next version of the weights from all outcomes so far."""
        self.weights = weights_of_all(self.successes, self.samples)
        self._take_increments()

    def drop_ended(self) -> None:
        """Forget the runs that may end early and have reached what they ran for."""
        if self.case.until != "end":
            open_runs = self.first[self.case.until][self.alive] == NEVER
            if not open_runs.all():
                self.alive = self.alive[open_runs]
                for name in ("samples", "successes", "terms", "crossed", "weights", "adds"):
                    setattr(self, name, getattr(self, name)[open_runs])

    def play(self, number: int, arms: Integers, hits: NDArray[np.bool_]) -> None:
        """Take a block of outcomes of every run, shape (outcomes, runs), and look after each; `number` went before."""
        got = arms[..., None] == np.arange(self.case.variants)
        samples = self.samples + got.cumsum(axis=0)
        successes = self.successes + (got & hits[..., None]).cumsum(axis=0)
        reached = np.zeros((*arms.shape, self.case.variants - 1), dtype=bool)
        for index in range(self.case.variants - 1):
            if not self.case.thompson:
                total = successes[..., 0] + successes[..., index + 1]
                least = least_hits(0.5, self.successes_max, self.case.variants - 1)
                reached[..., index] = successes[..., index + 1] >= least[total]
                continue
            steps, rows = np.nonzero(hits & (got[..., 0] | got[..., index + 1]))
            own, total = successes[steps, rows, index + 1], successes[steps, rows, 0] + successes[steps, rows, index + 1]
            before = self.successes[rows, 0] + self.successes[rows, index + 1]
            terms = self.terms[rows, index] + (total - before)[:, None] * self.adds[rows, index]
            reached[steps, rows, index] = log_evidence(own, total, terms) >= self.threshold
            gained = (successes[-1] - self.successes)[:, [0, index + 1]].sum(axis=1)
            self.terms[:, index] += gained[:, None] * self.adds[:, index]
        ever: NDArray[np.bool_] = np.logical_or.accumulate(reached, axis=0) | self.crossed
        self._look(number, samples, successes, ever)
        self.samples, self.successes = samples[-1], successes[-1]

    def _look(self, number: int, samples: Integers, successes: Integers, reached: NDArray[np.bool_]) -> None:
        """Note when each rule first held, in a block of counts; `reached` tells which challengers had crossed by then."""
        self.crossed = reached[-1]
        some: NDArray[np.bool_] = np.asarray(reached.any(axis=2))
        self._note("evidence", number, some)
        open_runs = self.first["winner"][self.alive] == NEVER
        steps, rows = np.nonzero(some & open_runs)
        if steps.size:
            held = np.zeros(reached.shape[:2], dtype=bool)
            held[steps, rows] = (gates_hold(successes[steps, rows], samples[steps, rows]) & reached[steps, rows]).any(axis=1)
            self._note("winner", number, held)
        if self.case.until == "end" and self.case.variants == 2:
            waiting = np.flatnonzero(self.first["seeds"][self.alive] == NEVER)
            if waiting.size:
                shape = (len(samples), waiting.size)
                held = np.zeros(reached.shape[:2], dtype=bool)
                flat = seeds_rule_holds(successes[:, waiting].reshape(-1, 2), samples[:, waiting].reshape(-1, 2))
                held[:, waiting] = flat.reshape(shape)
                self._note("seeds", number, held)

    def _note(self, rule: str, number: int, held: NDArray[np.bool_]) -> None:
        fresh = held.any(axis=0) & (self.first[rule][self.alive] == NEVER)
        self.first[rule][self.alive[fresh]] = number + 1 + held[:, fresh].argmax(axis=0)


def simulate(case: Case, runs: int, seed: int) -> Found:
    """Play `runs` experiments of a case to their end, or until none is left that must go on.

    seed  of numpy's PCG64; chunks with other seeds are independent
    """
    random = np.random.default_rng(seed)
    state = _Runs(case, runs)
    start, end = np.array(case.start), np.array(case.end)
    regret = np.zeros(10)
    first, version = 0, 0
    while first < case.outcomes and state.alive.size:
        if case.thompson and first >= version + max(REWEIGHT_MIN, version // 20):
            state.reweight()
            version = first
        count = min(BLOCK, case.outcomes - first)
        if case.thompson:
            count = min(count, version + max(REWEIGHT_MIN, version // 20) - first)
        rates = start + (end - start) * (np.arange(first, first + count)[:, None] / max(1, case.outcomes - 1))
        bounds = np.cumsum(state.weights, axis=1)[:, :-1]
        arms = (random.random((count, state.alive.size, 1)) >= bounds).sum(axis=2)
        chosen = np.take_along_axis(rates, arms, axis=1)
        hits = random.random(chosen.shape) < chosen
        lost = (rates.max(axis=1, keepdims=True) - chosen).sum(axis=1)
        np.add.at(regret, 10 * np.arange(first, first + count) // case.outcomes, lost)
        state.play(first, arms, hits)
        state.drop_ended()
        first += count
    firsts = {rule: times.tolist() for rule, times in state.first.items()}
    return Found(case=case, seed=seed, runs=runs, regret=regret.tolist(), **firsts)
