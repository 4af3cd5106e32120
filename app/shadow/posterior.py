"""What is believed of the variants' rates after the outcomes so far: Beta posteriors, exact by quadrature. Pure.

Every figure here describes belief at one look. None of them may decide when to stop: checked continuously, "P(best) > 95 %"
declares a false winner in four of ten experiments without any difference. `app.shadow.evidence` decides.

Error of every probability, rate and loss is below 1e-6 (the tests compare with closed forms and with direct integration;
what they find is below 1e-9), for counts from 0 to 10^12 and any ratio of sample sizes.

Sources: E. Miller, "Formulas for Bayesian A/B Testing", 2015 (closed forms that the tests use); C. Stucchi, "Bayesian A/B
Testing at VWO", 2015 (expected loss); log-odds panels in `app.shadow.beta_quadrature`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from app.shadow.beta_quadrature import (
    EDGES,
    NODES,
    PANEL_NODES,
    Betas,
    Floats,
    OwnPanels,
    betas,
    common_panels,
    others_below,
    own_panels,
    relative_density,
)
from app.shadow.roots import newton_root

if TYPE_CHECKING:
    from collections.abc import Sequence

VARIANTS_MAX: Final = 20  # of an experiment
COUNT_MAX: Final = 10**12  # outcomes of a variant: where the quadrature was checked; 300 years at 100 a second
PRIOR_MIN: Final = 1.0  # a flat prior; with Jeffreys' the sum is off by up to 2e-5 where all of 10^12 outcomes succeed
INTERVAL: Final = 0.95  # probability of the credible intervals, the tails equal
SUM_ERROR_MAX: Final = 1e-6  # how far the probabilities of being best may sum from 1 before the result is called wrong
_TAILS: Final = ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2)
_NEAR: Final = 1e-5  # of a probability at the end of an interval: one step further the error is below 1e-8
# Integrals of ratios need fewer nodes than those that tell the best of 20 apart: half the panels, eight nodes each.
_RATIO_NODES, _RATIO_WEIGHTS = legendre.leggauss(8)
_MIDDLES: Final = (EDGES[:-1] + EDGES[1:]) / 2
_STRETCHES: Final = 2 / np.diff(EDGES)
_TO_COEFFICIENTS: Final = np.linalg.inv(legendre.legvander(NODES, PANEL_NODES - 1))
# Takes densities at the nodes of a panel to the coefficients of 1, s, s^2 ... of their integral from the panel's start.
_TO_INTEGRAL: Final[Floats] = np.array(
    [
        np.pad(power := legendre.leg2poly(column), (0, PANEL_NODES + 1 - len(power)))
        for column in legendre.legint(_TO_COEFFICIENTS, lbnd=-1, axis=0).T
    ]
)


class Posterior(NamedTuple):
    """Belief about each variant, in the order of the counts.

    rate              successes / samples; None without samples
    mean              expected rate, (successes + prior) / (samples + prior)
    interval_low      of the 95 % credible interval of the rate, tails equal
    interval_high     the other end
    probability_best  that its rate is the highest of all, control included; sums to 1
    expected_loss     how much rate is given away, on average over belief, by choosing this variant
    lift              rate / rate of control - 1; None for control, without samples, and when control has no success
    lift_low          of the 95 % credible interval of that ratio; None for control and when control has no success
    lift_high         the other end
    """

    rate: tuple[float | None, ...]
    mean: tuple[float, ...]
    interval_low: tuple[float, ...]
    interval_high: tuple[float, ...]
    probability_best: tuple[float, ...]
    expected_loss: tuple[float, ...]
    lift: tuple[float | None, ...]
    lift_low: tuple[float | None, ...]
    lift_high: tuple[float | None, ...]


def posterior_parameters(
    successes: Sequence[int], samples: Sequence[int], prior: tuple[float, float] = (1.0, 1.0)
) -> tuple[Floats, Floats]:
    """Return a and b of each variant's Beta posterior.

    prior   a and b before any outcome; (1, 1) holds every rate equally likely
    faults  ValueError that names what is wrong with the counts or the prior
    """
    if len(successes) != len(samples) or not 1 <= len(samples) <= VARIANTS_MAX:
        raise ValueError(f"successes and samples need the same number of variants, 1 to {VARIANTS_MAX}")
    if any(not 0 <= hits <= count <= COUNT_MAX for hits, count in zip(successes, samples, strict=True)):
        raise ValueError(f"every variant needs 0 <= successes <= samples <= {COUNT_MAX}")
    if not all(PRIOR_MIN <= part <= COUNT_MAX for part in prior):
        raise ValueError(f"both parts of the prior must be from {PRIOR_MIN} to {COUNT_MAX}")
    hits, counts = np.array(successes, dtype=float), np.array(samples, dtype=float)
    return hits + prior[0], counts - hits + prior[1]


def probability_best(a: Floats, b: Floats) -> Floats:
    """Return for each variant the probability that its rate is the highest.

    a, b     parameters of the Beta posteriors, shape (..., variants): leading axes are experiments apart
    returns  the same shape; sums to 1 over the last axis
    faults   ArithmeticError when the quadrature is off, which is never expected
    """
    found = betas(a, b)
    panels = common_panels(found, own_panels(found))
    best = np.zeros_like(a)
    best[..., panels.alive] = np.einsum(
        "...vpn,...vpn,...pn->...v", panels.density, others_below(panels.below), panels.measure
    )
    return _summing_to_one(best)


def _summing_to_one(best: Floats) -> Floats:
    # A distribution function that is a difference from 1 may round to less than 0.
    best = np.maximum(best, 0.0)
    total = best.sum(axis=-1, keepdims=True)
    if not (np.abs(total - 1) < SUM_ERROR_MAX).all():
        raise ArithmeticError(f"the probabilities of being best sum to {total.ravel()}")
    normalised: Floats = best / total
    return normalised


def analyse(
    successes: Sequence[int], samples: Sequence[int], control: int, prior: tuple[float, float] = (1.0, 1.0)
) -> Posterior:
    """Return what is believed of every variant; below 5 ms for 20 variants.

    control  index of the variant that lifts are relative to
    faults   ValueError that names what is wrong with the counts, the prior or the index
    """
    a, b = posterior_parameters(successes, samples, prior)
    if not 0 <= control < len(samples):
        raise ValueError(f"there is no variant {control} to be the control")
    found = betas(a, b)
    mean = a / (a + b)
    own = own_panels(found)
    panels = common_panels(found, own)
    each = panels.density * others_below(panels.below) * panels.measure
    best = np.zeros_like(a)
    best[panels.alive] = each.sum(axis=(1, 2))
    best = _summing_to_one(best)
    # The highest rate exceeds a variant's own by x_j - x_i whenever j is best; summed over j that is E[max] - mean.
    highest = float((each.sum(axis=0) / (1 + np.exp(-panels.points))).sum())
    grid = _Distributions(found, own)
    quantiles = grid.quantiles(np.array(_TAILS))
    intervals = 1 / (1 + np.exp(-quantiles))
    rates = tuple(hits / count if count else None for hits, count in zip(successes, samples, strict=True))
    lifts = _lifts(rates, control)
    if rates[control]:
        low, high = _lift_intervals(grid, quantiles, control)
    else:
        low = high = (None,) * len(samples)
    return Posterior(
        rate=rates,
        mean=tuple(mean.tolist()),
        interval_low=tuple(intervals[:, 0].tolist()),
        interval_high=tuple(intervals[:, 1].tolist()),
        probability_best=tuple(best.tolist()),
        expected_loss=tuple(np.clip(highest - mean, 0.0, 1.0).tolist()),
        lift=lifts,
        lift_low=low,
        lift_high=high,
    )


def _lifts(rates: Sequence[float | None], control: int) -> tuple[float | None, ...]:
    basis = rates[control]
    return tuple(
        None if index == control or rate is None or not basis else rate / basis - 1 for index, rate in enumerate(rates)
    )


class _Distributions:
    """The distribution function of each variant as polynomials on panels of its own, to be asked at any log-odds."""

    def __init__(self, found: Betas, own: OwnPanels) -> None:
        self.betas = found
        self.edges = own.edges
        through = np.cumsum(own.masses, axis=-1)
        total = through[:, -1:]
        self.start, self.mass = (through - own.masses) / total, own.masses / total
        coefficients = own.values @ _TO_INTEGRAL
        coefficients[..., 0] += through - own.masses
        coefficients /= total[..., None]
        self.coefficients = np.moveaxis(coefficients, -1, 0).reshape(PANEL_NODES + 1, -1).copy()

    def below(self, place: Floats, variants: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Return probability below, and density at, log-odds `place`; its rows belong to `variants`."""
        found = self.betas
        distance = place - found.peak[variants, None]
        reach = np.where(distance < 0, found.left[variants, None], found.right[variants, None])
        part = distance / reach
        panel = np.searchsorted(EDGES[1:-1], part, side="right")
        stretch = _STRETCHES.take(panel)
        part -= _MIDDLES.take(panel)
        part *= stretch
        np.minimum(np.maximum(part, -1.0, out=part), 1.0, out=part)
        panel += (len(EDGES) - 1) * variants[:, None]
        value, slope = _values(self.coefficients.take(panel, axis=1), part)
        stretch /= reach
        slope *= stretch
        return value, slope

    def quantiles(self, tails: Floats) -> Floats:
        """Return the log-odds below which lies each probability of `tails`, shape (variants, tails)."""
        variants = np.arange(len(self.edges))[:, None]
        panel = (self.start[:, None, :] < tails[None, :, None]).sum(axis=-1) - 1
        powers = self.coefficients[:, panel + (len(EDGES) - 1) * variants]
        powers[0] -= tails
        powers = powers.reshape(len(powers), -1)

        def excess(place: Floats, rows: NDArray[np.intp]) -> tuple[Floats, Floats]:
            return _values(powers.take(rows, axis=1), place)

        whole = np.ones(powers.shape[1])
        guess = (
            2 * (np.tile(tails, len(self.edges)) - self.start[variants, panel].ravel()) / self.mass[variants, panel].ravel()
            - 1
        )
        inside = newton_root(np.minimum(np.maximum(guess, -whole), whole), (-whole, whole), excess, near=_NEAR)
        low, high = self.edges[variants, panel], self.edges[variants, panel + 1]
        found: Floats = low + (high - low) / 2 * (inside.reshape(panel.shape) + 1)
        return found


def _values(powers: Floats, place: Floats) -> tuple[Floats, Floats]:
    """Return values and slopes of polynomials by Horner's rule; the first axis of `powers` counts the powers."""
    value, slope = powers[-1].copy(), np.zeros_like(place)
    for power in powers[-2::-1]:
        slope *= place
        slope += value
        value *= place
        value += power
    return value, slope


def _log_rate(log_odds: Floats) -> Floats:
    found: Floats = -np.logaddexp(0.0, -log_odds)
    return found


def _log_odds(log_rate: Floats) -> Floats:
    """Return log(p / (1 - p)) of log p; the log-odds of a rate of 1 and above are those of the double next to 1."""
    return _stretched_log_odds(log_rate)[0]


def _stretched_log_odds(log_rate: Floats) -> tuple[Floats, Floats]:
    """Return log-odds as `_log_odds`, and how fast they rise with log p: 1 / (1 - p)."""
    capped = np.minimum(log_rate, -1e-16)
    missing = -np.expm1(capped)
    return capped - np.log(missing), 1 / missing


def _ratio_intervals(grid: _Distributions, quantiles: Floats, control: int, others: NDArray[np.intp]) -> Floats:
    """Return the ends of the credible interval of rate / rate of control, shape (others, 2).

    quantiles  the ends of the credible intervals of the rates, in log-odds

    P(p_i / p_c <= e^l) is the integral of control's density times the probability that p_i is below e^l p_c, or that of the
    variant's density times the probability that p_c is above e^-l p_i. The sharper density is integrated over the wider
    distribution function, in panels that end where that reaches 1, since it is not smooth there.
    """
    found = grid.betas
    controls = np.full_like(others, control)
    variance = found.b / (found.a * (found.a + found.b))
    own_is_sharper = variance[others] < variance[control]
    sharp, wide = np.where(own_is_sharper, others, controls), np.where(own_is_sharper, controls, others)
    sign, count = np.where(own_is_sharper, -1.0, 1.0), len(_TAILS)
    base, tails = np.repeat((1 - sign) / 2, count), np.tile(_TAILS, len(others))
    edges, a, b, peak = grid.edges[sharp, ::2], found.a[sharp], found.b[sharp], found.peak[sharp]

    def masses(edges: Floats, of: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Return log-odds in these panels, and the mass that each stands for, up to a factor: of some of the others."""
        half = np.diff(edges)[..., None] / 2
        place = edges[..., :-1, None] + half * (_RATIO_NODES + 1)
        at = (of, None, None)
        mass = relative_density(a[at], b[at], place - peak[at]) * half * _RATIO_WEIGHTS
        return place.reshape(len(of), -1), mass.reshape(len(of), -1)

    place, mass = masses(edges, np.arange(len(others)))
    total = mass.sum(axis=-1, keepdims=True)
    mass /= total
    log_rate = _log_rate(place)

    def excess(log_ratio: Floats, rows: NDArray[np.intp]) -> tuple[Floats, Floats]:
        of = rows // count
        shift = sign[of] * log_ratio
        rates, part = log_rate[of] + shift[:, None], mass[of]
        ends = _log_odds(-shift)
        cut = np.flatnonzero(ends < edges[of, -1])
        if len(cut):
            places, parts = masses(np.minimum(edges[of[cut]], ends[cut, None]), of[cut])
            rates[cut], part[cut] = _log_rate(places) + shift[cut, None], parts / total[of[cut]]
        odds, stretch = _stretched_log_odds(rates)
        below, density = grid.below(odds, wide[of])
        held = (part * below).sum(axis=-1) + 1 - part.sum(axis=-1)
        return base[rows] + sign[of] * held - tails[rows], (part * density * stretch).sum(axis=-1)

    # The guess is the MOVER interval (G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures",
    # Statistics in Medicine 27, 2008); the reaches of both give a bracket that holds all of the mass.
    middle, rates = _log_rate(found.peak), _log_rate(quantiles)
    down, up = (middle - rates[:, 0])[:, None], (rates[:, 1] - middle)[:, None]
    away = np.hstack([np.hypot(down[others], up[control]), np.hypot(up[others], down[control])])
    bottom, top = _log_rate(grid.edges[:, 0]), _log_rate(grid.edges[:, -1])
    bracket = np.repeat(bottom[others] - top[control], count), np.repeat(top[others] - bottom[control], count)
    guess = np.clip(((middle[others] - middle[control])[:, None] + away * [-1.0, 1.0]).ravel(), *bracket)
    ends: Floats = np.exp(newton_root(guess, bracket, excess, near=_NEAR)).reshape(-1, count)
    return ends


def _lift_intervals(
    grid: _Distributions, quantiles: Floats, control: int
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    count = len(grid.edges)
    others = np.array([index for index in range(count) if index != control], dtype=np.intp)
    ends = np.full((count, 2), np.nan)
    if len(others):
        ends[others] = _ratio_intervals(grid, quantiles, control, others) - 1
    low, high = ([None if index == control else value for index, value in enumerate(side)] for side in ends.T.tolist())
    return tuple(low), tuple(high)
