"""Evidence that holds at every look: e-processes on which variant each success came from. Pure.

The model. A unit got the challenger with probability s, control with 1 - s: the share, fixed and logged before it was
assigned, among the two of them. Given that a success is one of theirs, it is the challenger's with probability
f(r) = s r / (s r + 1 - s), where r is the ratio of their success rates at that moment; the rates themselves cancel, so
they may drift, and the share may change from unit to unit as Thompson sampling does. For each ratio r > r0 the product
over successes of (f(r) / f(r0) for the challenger's, (1 - f(r)) / (1 - f(r0)) for control's) is a non-negative
supermartingale while the true ratio is at most r0, and so is any average over r with weights fixed beforehand. By Ville's
inequality it ever reaches 1 / alpha with probability at most alpha: at any number of looks, at any time, whatever made
one look. Swapping the sides gives evidence of harm, and all r0 that neither side rejects are an interval for the ratio
that is valid at any time.

What it needs: shares fixed before assignment; the same waiting time for outcomes in both variants; and one success per
unit at most, since a second success of the same unit comes from a variant that is known by then. That matters: with two
successes for each unit 14 % of A/A tests of 5,000 successes cross at alpha = 0.02, with five 50 %, with one 1.6 %.

The statistic. With x = log r the log likelihood is S(x) = X x - A(x), X the challenger's successes, A(x) the sum over both
variants' successes of log(1 + s (e^x - 1)). A is analytic in |Im x| < pi, so its values at 24 Chebyshev points of [-2, 2]
give it everywhere in between to 1e-10 per success. A success therefore adds 26 integers: one to the count of its side,
and 24 terms of A in nano-nats (1e-9 nat). Integers add up to the same sum in any order on any replica.

Rounding. A term is off by at most 0.5 nano-nat, the interpolated A(x) by at most 0.5 times the sum of the absolute Lagrange
coefficients (below 3.2) plus the interpolation error. That bound, times the number of successes, is taken off the exponent
before it is used, so that the computed evidence is never above the exact one, and the guarantee holds for the integers. It
costs 0.002 nat at a million successes; a decision at alpha = 0.02 takes 3.9 nats.

Sources: J. Ville, "Etude critique de la notion de collectif", 1939; A. Ramdas et al., "Game-theoretic statistics and safe
anytime-valid inference", Statistical Science 38, 2023; M. Lindon and A. Malek, "Anytime-valid inference for multinomial
count data", NeurIPS 2022; H. Robbins, "Statistical methods related to the law of the iterated logarithm", 1970
(mixtures); L. N. Trefethen, "Approximation Theory and Approximation Practice", theorems 5.2, 8.2 and 15.1 (interpolation
and its error).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = NDArray[np.float64]

LOG_RATIO_MAX: Final = 2.0  # ratios from 1/7.39 to 7.39; truths beyond are found out nearly as fast as 7.39 is
POINTS: Final = 24  # Chebyshev points; 20 would do for 1e-9 per success
SUM_FIELDS: Final = 2 + POINTS  # integers of a statistic: successes of challenger, of control, and the terms of A
NANO: Final = 1_000_000_000  # nano-nats in a nat
SUCCESSES_MAX: Final = 4 * 10**9  # of one pair: 2e9 nano-nats each then stay below the 2^63 of Redis
INTERPOLATION_NANO: Final = 0.2  # nano-nats per success; the tests find less than 0.05 and derive the bound
_ROUNDING_NANO: Final = 0.5
_FLOAT_NANO: Final = 0.01  # for the arithmetic of the terms and of the sums in doubles
_LOG_MAX: Final = 700.0  # nats; e^700 is near the largest double, and JSON has no infinity
_TINY: Final = 1e-300  # added before a logarithm is taken: the evidence of no bet at all is 0
LEBESGUE_MAX: Final = 3.2  # sum of the absolute Lagrange coefficients of 24 Chebyshev points, at any place
# Most error of A(x) - A(log r0) for each success.
_SLACK_MAX_NANO: Final = 2 * LEBESGUE_MAX * (_ROUNDING_NANO + _FLOAT_NANO) + 2 * INTERPOLATION_NANO
_MARGIN: Final = 1e-9  # relative, on the threshold, for the arithmetic of the mixture


def _chebyshev() -> tuple[Floats, Floats]:
    """Return the Chebyshev points of the first kind on [-2, 2], and their barycentric weights: Trefethen, theorem 5.2."""
    angles = (2 * np.arange(POINTS) + 1) * np.pi / (2 * POINTS)
    alternating = np.where(np.arange(POINTS) % 2, -1.0, 1.0)
    return LOG_RATIO_MAX * np.cos(angles), alternating * np.sin(angles)


_POINTS, _BARYCENTRIC = _chebyshev()
# Takes values at the points to the coefficients of Chebyshev polynomials: a discrete cosine transform.
_TO_COEFFICIENTS: Final = np.linalg.inv(chebyshev.chebvander(_POINTS / LOG_RATIO_MAX, POINTS - 1))
_RATIOS: Final = tuple(math.expm1(point) for point in _POINTS)


# What the evidence bets on, as (weight, centre, width) of normal densities of the log ratio, cut off at 0: mostly lifts of a
# few to a few tens per cent, since smaller ones are below the usual least lift, and a little on large ones.
_DENSITY: Final = ((0.92, 0.11, 0.11), (0.08, 0.0, 1.0))
_BETS_MIN: Final = 0.004  # log ratio: half a million successes can tell it from 0
_BETS_COUNT: Final = 48  # a factor of 1.14 apart: finer than what the data can tell apart when they decide


def _prior() -> tuple[Floats, Floats]:
    """Return the log ratios beyond r0 that the evidence bets on, and the logarithms of their weights, which sum to 1."""
    distance = np.exp(np.linspace(math.log(_BETS_MIN), math.log(LOG_RATIO_MAX), _BETS_COUNT))
    weights = np.zeros(_BETS_COUNT)
    for part, centre, width in _DENSITY:
        density = distance * np.exp(-0.5 * ((distance - centre) / width) ** 2)
        weights += part * density / density.sum()
    return distance, np.log(weights / weights.sum())


_BETS, _LOG_WEIGHTS = _prior()


def _lagrange(places: Floats) -> Floats:
    """Return the row that takes A at the Chebyshev points to A at each place: one more axis."""
    distance = places[..., None] - _POINTS
    exact = distance == 0
    with np.errstate(divide="ignore"):
        terms = np.where(exact.any(axis=-1, keepdims=True), exact, _BARYCENTRIC / distance)
    rows: Floats = terms / terms.sum(axis=-1, keepdims=True)
    return rows


@lru_cache(maxsize=4096)
def _terms(share: float) -> tuple[int, ...]:
    return tuple(round(NANO * math.log1p(share * ratio)) for ratio in _RATIOS)


def increments(share: float, *, challenger: bool) -> tuple[int, ...]:
    """Return what one success adds to the statistic of a challenger and control: 26 integers, to be summed field by field.

    share       probability that this unit got the challenger given that it got one of the two: w_i / (w_i + w_control) of
                the weights that were logged when it was assigned
    challenger  whether it got the challenger. A success of control adds to the statistic of every challenger, each with
                its own share; a success of a challenger adds to its own alone
    returns     (1, 0, ...) or (0, 1, ...), then the terms of A in nano-nats
    faults      ValueError for a share outside 0 to 1, or one with which this unit could not have been assigned as it was
    """
    if not 0 <= share <= 1 or share == (0 if challenger else 1):
        raise ValueError(f"no unit gets {'the challenger' if challenger else 'control'} with a share of {share}")
    return (int(challenger), int(not challenger), *_terms(share))


def sums_of(share: float, challenger_successes: int, control_successes: int) -> tuple[int, ...]:
    """Return the statistic of successes that all had the same share: what adding `increments` one by one gives, exactly."""
    if min(challenger_successes, control_successes) < 0:
        raise ValueError("successes cannot be negative")
    total = challenger_successes + control_successes
    if not total:
        return (0,) * SUM_FIELDS
    terms = increments(share, challenger=challenger_successes > 0)[2:]
    return (challenger_successes, control_successes, *(total * term for term in terms))


class _Bets(NamedTuple):
    """What the evidence against one ratio r0 on one side is computed with.

    log_weights  of each bet; minus infinity for those beyond the largest ratio
    rows         take the terms of A to A(x) - A(log r0) at each bet
    slack        most error of that for each success, in nano-nats
    """

    log_weights: Floats
    rows: Floats
    slack: Floats


@lru_cache(maxsize=256)
def _bets(r0: float, side: int) -> _Bets:
    origin = np.array([math.log(r0)])
    places = origin + side * _BETS
    usable = np.abs(places) <= LOG_RATIO_MAX
    # A(0) is 0 without any error, so at r0 = 1 there is nothing to interpolate.
    at_origin = _lagrange(origin) * (r0 != 1)
    rows = _lagrange(np.where(usable, places, 0.0)) - at_origin
    slack = (_ROUNDING_NANO + _FLOAT_NANO) * np.abs(rows).sum(axis=1) + 2 * INTERPOLATION_NANO
    return _Bets(np.where(usable, _LOG_WEIGHTS, -np.inf), rows, slack)


def _log_mean(exponents: Floats) -> Floats:
    """Return log(sum(exp(exponents))) over the last axis."""
    top = np.maximum(exponents.max(axis=-1), -_LOG_MAX)
    found: Floats = top + np.log(np.exp(exponents - top[..., None]).sum(axis=-1) + _TINY)
    return found


class Likelihood:
    """The log likelihood of several challengers' log ratios, each at places of its own: what intervals are made from."""

    def __init__(self, statistics: Sequence[Sequence[int]]) -> None:
        """Read the sums of every challenger; raise ValueError for those that are no statistic."""
        found = [_fields(sums) for sums in statistics]
        self.counts = np.array([counts for counts, _ in found])
        self.successes = self.counts.sum(axis=1)
        self._coefficients = _TO_COEFFICIENTS @ np.array([terms for _, terms in found]).T / NANO

    def slope(self, places: Floats) -> Floats:
        """Return the derivative of each log likelihood at its place."""
        slopes = chebyshev.chebder(self._coefficients, scl=1 / LOG_RATIO_MAX)
        found: Floats = self.counts[:, 0] - chebyshev.chebval(places / LOG_RATIO_MAX, slopes, tensor=False)
        return found

    def log_evidence(self, origins: Floats, side: int) -> Floats:
        """Return the log of each challenger's evidence against its own log ratio of `origins`, never above the exact one.

        side  1 for evidence that the ratio is higher, -1 that it is lower
        """
        places = origins[:, None] + side * _BETS
        usable = np.abs(places) <= LOG_RATIO_MAX
        both = np.hstack([origins[:, None], np.where(usable, places, 0.0)]) / LOG_RATIO_MAX
        terms = chebyshev.chebval(both, self._coefficients[:, :, None], tensor=False)
        exponents = self.counts[:, :1] * (side * _BETS) - (terms[:, 1:] - terms[:, :1])
        exponents -= self.successes[:, None] * (_SLACK_MAX_NANO / NANO)
        return _log_mean(np.where(usable, exponents + _LOG_WEIGHTS, -np.inf))


def _fields(sums: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the counts and the terms of a statistic as floats; raise ValueError if it is none."""
    if len(sums) != SUM_FIELDS:
        raise ValueError(f"a statistic has {SUM_FIELDS} fields")
    if min(sums[:2]) < 0 or sum(sums[:2]) > SUCCESSES_MAX:
        raise ValueError(f"a statistic counts 0 to {SUCCESSES_MAX} successes")
    return np.array(sums[:2], dtype=float), np.array(sums[2:], dtype=float)


def _e(sums: Sequence[int], r0: float, side: int) -> float:
    if not abs(math.log(r0) if r0 > 0 else math.inf) < LOG_RATIO_MAX:
        raise ValueError(f"r0 must be between {math.exp(-LOG_RATIO_MAX):.3f} and {math.exp(LOG_RATIO_MAX):.3f}")
    counts, terms = _fields(sums)
    bets = _bets(r0, side)
    exponents = counts[0] * side * _BETS - (bets.rows @ terms + counts.sum() * bets.slack) / NANO
    return math.exp(min(float(_log_mean(exponents + bets.log_weights)), _LOG_MAX))


def e_value(sums: Sequence[int], r0: float = 1.0) -> float:
    """Return the evidence that the challenger's success rate is more than `r0` times control's: 1 at the start, 50 is much.

    While that is not so, it ever reaches 1 / alpha with probability at most alpha. For the arms of errors or of slow calls
    it is the evidence that the challenger makes more than `r0` times as many.

    sums    the statistic: `increments` of all successes, summed
    faults  ValueError for sums that are no statistic, or an r0 outside 0.135 to 7.39
    """
    return _e(sums, r0, 1)


def harm_e_value(sums: Sequence[int], r0: float = 1.0) -> float:
    """Return the evidence that the challenger's success rate is less than `r0` times control's; otherwise as `e_value`."""
    return _e(sums, r0, -1)


def crossed(e: float, alpha: float, challengers: int = 1) -> bool:
    """Return whether the evidence suffices: e >= challengers / alpha.

    alpha        most probability of ever being wrong, over all challengers and all looks: `max_false_positive`
    challengers  how many are compared with control; dividing alpha among them is Bonferroni's correction
    faults       ValueError for an alpha that is no probability, or no challenger
    """
    if not 0 < alpha < 1 or challengers < 1:
        raise ValueError("alpha must be between 0 and 1, and there must be a challenger")
    return e * (1 - _MARGIN) >= challengers / alpha


def no_difference(statistics: Sequence[Sequence[int]], min_lift: float, alpha: float) -> bool:
    """Return whether every challenger is shown to lift the success rate by less than `min_lift`: there is nothing to wait
    for.

    If one of them does lift it that much, this is ever said with probability at most alpha, however many others there are:
    for it to be said, that one's own evidence would have to be wrong (R. L. Berger, "Multiparameter hypothesis testing and
    acceptance sampling", 1982: intersection-union test). No correction is needed.

    statistics  the sums of every challenger
    min_lift    above 0; 0.05 for 5 %
    """
    if not min_lift > 0 or not statistics:
        raise ValueError("min_lift must be above 0, and there must be a challenger")
    return all(crossed(harm_e_value(sums, 1 + min_lift), alpha) for sums in statistics)
