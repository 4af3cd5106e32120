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
unit at most, since a second success of the same unit comes from a variant that is known by then.

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
from typing import TYPE_CHECKING, Final

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
SUCCESSES_MAX: Final = 10**9  # of one pair: 2e9 nano-nats each then stay below the 2^63 of Redis
INTERPOLATION_NANO: Final = 0.2  # nano-nats per success; the tests find less than 0.05 and derive the bound
_ROUNDING_NANO: Final = 0.5
_FLOAT_NANO: Final = 0.01  # for the arithmetic of the terms and of the sums in doubles
_LOG_MAX: Final = 700.0  # nats; e^700 is near the largest double, and JSON has no infinity
_MARGIN: Final = 1e-9  # relative, on the threshold, for the arithmetic of the mixture


def _chebyshev() -> tuple[Floats, Floats]:
    """Return the Chebyshev points of the first kind on [-2, 2], and their barycentric weights: Trefethen, theorem 5.2."""
    angles = (2 * np.arange(POINTS) + 1) * np.pi / (2 * POINTS)
    alternating = np.where(np.arange(POINTS) % 2, -1.0, 1.0)
    return LOG_RATIO_MAX * np.cos(angles), alternating * np.sin(angles)


_POINTS, _BARYCENTRIC = _chebyshev()
# Takes values at the points to the coefficients of Chebyshev polynomials: a discrete cosine transform.
_TO_COEFFICIENTS: Final = np.linalg.inv(chebyshev.chebvander(_POINTS / LOG_RATIO_MAX, POINTS - 1)).T
_RATIOS: Final = tuple(math.expm1(point) for point in _POINTS)


def _prior() -> tuple[Floats, Floats]:
    """Return the log ratios above r0 that the evidence bets on, and the logarithms of their weights, which sum to 1.

    The density is that of the log ratio's size: two half-normals and a little everywhere. Points are equally far apart on
    the
    logarithmic scale, closer than what the data can tell apart when they decide.
    """
    logs = np.linspace(math.log(0.004), math.log(LOG_RATIO_MAX), 56)
    distance = np.exp(logs)
    density = sum(part * np.exp(-0.5 * (distance / width) ** 2) / width for part, width in ((0.35, 0.06), (0.65, 0.2)))
    weight = distance * density
    weight = 0.97 * weight / weight.sum() + 0.03 / len(weight)
    return distance, np.log(weight / weight.sum())


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
                the
                weights that were logged when it was assigned
    challenger  whether it got the challenger. A success of control adds to the statistic of every challenger, each with
                its own
                share; a success of a challenger adds to its own alone
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


class Bets:
    """What it takes to compute the evidence against `ratio = e^origin` on one side: rows on the terms, and the slack."""

    def __init__(self, origin: Floats, side: int) -> None:
        """Prepare for each log ratio of `origin`; side 1 bets on higher ratios, -1 on lower ones."""
        places = origin[..., None] + side * _BETS
        usable = np.abs(places) <= LOG_RATIO_MAX
        self.log_weights = np.where(usable, _LOG_WEIGHTS, -np.inf)
        self.moves = side * _BETS
        at_origin = _lagrange(origin[..., None]) * (origin != 0)[..., None, None]
        self.rows = _lagrange(np.where(usable, places, 0.0)) - at_origin
        coefficients = np.abs(self.rows).sum(axis=-1)
        self.slack = (_ROUNDING_NANO + _FLOAT_NANO) * coefficients + 2 * INTERPOLATION_NANO

    def log_evidence(self, counts: Floats, terms: Floats) -> Floats:
        """Return log E; the axes of `counts` (..., 2) and `terms` (..., 24) before the last are those of the origin."""
        exponents = counts[..., :1] * self.moves + self.log_weights
        exponents -= ((self.rows @ terms[..., None])[..., 0] + counts.sum(axis=-1, keepdims=True) * self.slack) / NANO
        top = np.maximum(exponents.max(axis=-1), -_LOG_MAX)
        found: Floats = top + np.log(np.exp(exponents - top[..., None]).sum(axis=-1) + 1e-300)
        return found


def bets_at(origin: Floats, side: int) -> Bets:
    """Return the bets against each log ratio of `origin`; side 1 bets on higher ones, -1 on lower ones."""
    return Bets(origin, side)


@lru_cache(maxsize=256)
def _bets(ratio: float, side: int) -> Bets:
    return Bets(np.array(math.log(ratio)), side)


def likelihood_slope(counts: Floats, terms: Floats, places: Floats) -> Floats:
    """Return the derivative of the log likelihood S by the log ratio, at one place for each statistic."""
    coefficients = terms @ _TO_COEFFICIENTS / NANO
    slopes = chebyshev.chebder(coefficients, scl=1 / LOG_RATIO_MAX, axis=-1)
    found: Floats = counts[..., 0] - chebyshev.chebval(places / LOG_RATIO_MAX, np.moveaxis(slopes, -1, 0), tensor=False)
    return found


def fields_of(sums: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the counts and the terms of a statistic as floats; raise ValueError if it is none."""
    if len(sums) != SUM_FIELDS:
        raise ValueError(f"a statistic has {SUM_FIELDS} fields")
    if min(sums[:2]) < 0 or sum(sums[:2]) > SUCCESSES_MAX:
        raise ValueError(f"a statistic counts 0 to {SUCCESSES_MAX} successes")
    return np.array(sums[:2], dtype=float), np.array(sums[2:], dtype=float)


def _e(sums: Sequence[int], r0: float, side: int) -> float:
    if not abs(math.log(r0) if r0 > 0 else math.inf) < LOG_RATIO_MAX:
        raise ValueError(f"r0 must be between {math.exp(-LOG_RATIO_MAX):.3f} and {math.exp(LOG_RATIO_MAX):.3f}")
    return math.exp(min(float(_bets(r0, side).log_evidence(*fields_of(sums))), _LOG_MAX))


def e_value(sums: Sequence[int], r0: float = 1.0) -> float:
    """Return the evidence that the challenger's success rate is more than `r0` times control's: 1 at the start, 50 is much.

    While that is not so, it ever reaches 1 / alpha with probability at most alpha. For the arms of errors or of slow
    calls it is
    the evidence that the challenger makes more than `r0` times as many.

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
