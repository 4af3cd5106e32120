"""The lift of a challenger with an interval that holds at every look, from the statistic of `app.shadow.evidence`. Pure.

The interval holds the ratios that neither side's evidence rejects at alpha / 2. It is a confidence sequence: the chance
that it ever fails to hold the true ratio is at most alpha, at any number of looks, under drift of both rates together and
under Thompson sampling, where a ratio of pooled rates is biased.

Source: S. R. Howard et al., "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49,
2021.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from app.shadow.evidence import LOG_RATIO_MAX, Likelihood
from app.shadow.roots import rising_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.shadow.evidence import Floats

_PLACE_ERROR: Final = 1e-9  # of the log ratio
_EVIDENCE_CAP: Final = 50.0  # nats beyond the threshold: keeps secant steps finite where the evidence is overwhelming


class Lift(NamedTuple):
    """How much higher the challenger's success rate is, as a part of control's: 0.2 for 20 %.

    estimate  of most likelihood; None while one of the two has no success, or when it is beyond 639 % or below -86 %
    low       end of the interval that holds at every look; -1.0 while nothing below is ruled out
    high      the other end; None while nothing above is ruled out
    """

    estimate: float | None
    low: float
    high: float | None


def lifts_of(statistics: Sequence[Sequence[int]], alpha: float) -> tuple[Lift, ...]:
    """Return estimate and interval of each challenger's lift.

    statistics  the sums of every challenger
    alpha       most probability with which one interval ever misses the truth
    faults      ValueError for sums that are no statistic, or an alpha that is no probability
    """
    if not 0 < alpha < 1:
        raise ValueError("alpha must be between 0 and 1")
    if not statistics:
        return ()
    likelihood = Likelihood(statistics)
    estimates = _estimates(likelihood)
    guesses = np.clip(estimates, -LOG_RATIO_MAX + 0.1, LOG_RATIO_MAX - 0.1)
    low = _end(likelihood, guesses, math.log(2 / alpha), 1)
    high = _end(likelihood, guesses, math.log(2 / alpha), -1)
    return tuple(
        Lift(
            None if abs(middle) >= LOG_RATIO_MAX else math.expm1(middle),
            -1.0 if start <= -LOG_RATIO_MAX else math.expm1(start),
            None if end >= LOG_RATIO_MAX else math.expm1(end),
        )
        for middle, start, end in zip(estimates.tolist(), low.tolist(), high.tolist(), strict=True)
    )


def _estimates(likelihood: Likelihood) -> Floats:
    """Return the log ratios of most likelihood; +-2 where that is at the edge or beyond."""
    edge = np.full(len(likelihood.counts), LOG_RATIO_MAX)
    information = likelihood.successes / 4 + 1

    def excess(place: Floats) -> Floats:
        return -likelihood.slope(place)

    start, error = np.zeros_like(edge), information * _PLACE_ERROR
    found = rising_root(start, (-edge, edge), information, excess, value_error=error, place_error=_PLACE_ERROR)
    challenger, control = likelihood.counts.T
    found = np.where(challenger == 0, -edge, np.where(control == 0, edge, found))
    return np.where(np.abs(found) > edge - 2 * _PLACE_ERROR, np.sign(found) * edge, found)


def _end(likelihood: Likelihood, guesses: Floats, threshold: float, side: int) -> Floats:
    """Return the end of the interval that evidence of this side bounds, rounded outward by the error of the search.

    The likelihood is log-concave in the log ratio, so the evidence against a ratio falls the farther it is towards `side`.
    """
    edge = np.full(len(guesses), LOG_RATIO_MAX)

    def excess(place: Floats) -> Floats:
        gap = threshold - likelihood.log_evidence(side * place, side)
        return np.clip(gap, -_EVIDENCE_CAP, _EVIDENCE_CAP)

    open_ended = excess(-edge) >= 0
    width = np.sqrt(threshold / np.maximum(likelihood.successes / 4, 1))
    guess = np.clip(side * guesses - 2 * width, -edge, edge)
    slope = 2 * threshold / width
    found = rising_root(guess, (-edge, edge), slope, excess, value_error=1e-9, place_error=_PLACE_ERROR) - _PLACE_ERROR
    return side * np.where(open_ended, -edge, np.maximum(found, -edge))
