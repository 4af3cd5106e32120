"""Many experiments at once, outcome by outcome, decided by the code of `app.shadow` after every outcome.

Counters and statistics are those of the server: integers, the increments of `app.shadow.evidence`, the weights of
`app.shadow.posterior`. Two things are done for all runs together, and `tests/bench/test_shadow_runs.py` proves them equal
to the scalar code: evidence (`log_evidence`) and weights (`weights_of_all`). P(best) of the seed's rule is computed
exactly wherever a normal approximation leaves any doubt about which side of 0.95 it is on.
"""

from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.shadow import evidence
from app.shadow.evidence import NANO, POINTS, crossed, increments
from app.shadow.posterior import probability_best

ALPHA: Final = 0.02
PROBABILITY: Final = 0.95
SAMPLES_MIN: Final = 100
LIFT_MIN: Final = 0.05
FLOOR: Final = 0.05
BLOCK: Final = 250  # outcomes of all runs that are worked on at once
REWEIGHT_MIN: Final = 100  # outcomes between two versions of Thompson weights, and later a twentieth of all so far
NEVER: Final = -1
# The normal approximation of P(best) is off by less than this, divided by the square root of the lesser number of
# successes and 1.
DOUBT: Final = 0.06

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


def _best(successes: Integers, samples: Integers) -> Floats:
    """Return P(best) of every variant under flat priors, one row for each run."""
    return probability_best(np.asarray(successes + 1, dtype=float), np.asarray(samples - successes + 1, dtype=float))


def weights_of_all(successes: Integers, samples: Integers, floor: float = FLOOR) -> Floats:
    """Return the Thompson weights of every run: rows of `app.shadow.thompson.weights_of`."""
    best = _best(successes, samples)
    found: Floats = floor + (1 - samples.shape[1] * floor) * best
    return found


def approximate_second_best(successes: Integers, samples: Integers) -> Floats:
    """Return P(p_1 > p_0) by a normal approximation on the log-odds scale; DOUBT says how good it is near 0.95."""
    a, b = successes + 0.5, samples - successes + 0.5
    difference = np.log(a[:, 1] / b[:, 1]) - np.log(a[:, 0] / b[:, 0])
    z = difference / np.sqrt((1 / a + 1 / b).sum(axis=1))
    # Abramowitz and Stegun, 26.2.17: error below 7.5e-8, and no loop over the elements.
    t = 1 / (1 + 0.2316419 * np.abs(z))
    series = t * (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * series
    found: Floats = np.where(z > 0, 1 - tail, tail)
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
        doubtful = np.abs(chance - PROBABILITY) < DOUBT / np.sqrt(successes[rows].min(axis=1) + 1)
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
        self._take_increments()

    def _take_increments(self) -> None:
        """Ask the code under test for the increments of the current weights; equal weights of a fixed split ask once."""
        shares = self.weights[:, 1:] / (self.weights[:, 1:] + self.weights[:, :1])
        for place, share in np.ndenumerate(shares):
            self.adds[place] = increments(float(share), challenger=True)[2:]

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
