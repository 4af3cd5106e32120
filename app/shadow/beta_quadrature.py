"""Beta distributions on the log-odds scale, integrated by Gauss-Legendre panels. Pure; numpy alone.

With t = log(p / (1 - p)), the density of Beta(a, b) is proportional to exp(a t - (a + b) log(1 + e^t)): smooth, with one
peak at log(a / b) and tails that fall at least exponentially, whatever the counts. It is taken relative to its peak, as
a d - (a + b) log1p(a / (a + b) (e^d - 1)) with d = t - log(a / b), which loses no digits at counts of 10^12, and
normalised by its own integral. Every distribution brings breakpoints on its own scale, so that very unequal ones are all
resolved.

Sources: the integrals of P(best) and expected loss, Chris Stucchi, "Bayesian A/B Testing at VWO", 2015; integration
matrix of an interpolant, L. N. Trefethen, "Approximation Theory and Approximation Practice", chapters 8, 18 and 19.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PANEL_NODES: Final = 10  # Gauss-Legendre nodes of a panel
# Edges of a distribution's panels as parts of its reach on one side. Dense at the peak, wide in the tail.
_EDGES_ONE_SIDE: Final = (0.055, 0.115, 0.18, 0.26, 0.36, 0.48, 0.65, 1.0)
EDGES: Final[Floats] = np.array([-part for part in reversed(_EDGES_ONE_SIDE)] + [0.0, *_EDGES_ONE_SIDE])
_REACH_GAUSSIAN: Final = 8.0  # standard deviations beyond which a normal density is below 1e-14 of its peak
_REACH_EXPONENTIAL: Final = 24.0  # more of them for a tail that falls as e^(-a d): 1e-13 at a = 1


def _integration() -> tuple[Floats, Floats, Floats]:
    """Return nodes, weights and the matrix that takes values at the nodes to integrals from -1 to each node."""
    nodes, weights = legendre.leggauss(PANEL_NODES)
    to_coefficients = np.linalg.inv(legendre.legvander(nodes, PANEL_NODES - 1))
    integrals = legendre.legint(to_coefficients, lbnd=-1, axis=0)
    return nodes, weights, np.ascontiguousarray((legendre.legvander(nodes, PANEL_NODES) @ integrals).T)


NODES, WEIGHTS, CUMULATIVE = _integration()


class Betas(NamedTuple):
    """Beta distributions; every field has the shape of `a`, the last axis counts the variants of one experiment.

    peak   log-odds of the highest density
    left   how far below the peak there is any mass, in log-odds
    right  how far above it
    """

    a: Floats
    b: Floats
    peak: Floats
    left: Floats
    right: Floats


def betas(a: Floats, b: Floats) -> Betas:
    """Return the distributions Beta(a, b) with the place and reach of each; a and b above 0."""
    deviation = np.sqrt(1 / a + 1 / b)
    return Betas(
        a,
        b,
        np.log(a / b),
        deviation * (_REACH_GAUSSIAN + _REACH_EXPONENTIAL / np.sqrt(a)),
        deviation * (_REACH_GAUSSIAN + _REACH_EXPONENTIAL / np.sqrt(b)),
    )


def relative_density(a: Floats, b: Floats, distance: Floats) -> Floats:
    """Return the density at log-odds `distance` from the peak, as a part of the density at the peak. Shapes broadcast."""
    total = a + b
    exponent: Floats = a * distance - total * np.log1p(a / total * np.expm1(distance))
    return np.exp(exponent, out=exponent)


def own_edges(found: Betas) -> Floats:
    """Return the edges of the panels of each distribution: one more axis, from low to high."""
    reach = np.where(EDGES < 0, found.left[..., None], found.right[..., None])
    edges: Floats = found.peak[..., None] + EDGES * reach
    return edges


class OwnPanels(NamedTuple):
    """Each distribution on panels of its own.

    edges   of the panels, shape (..., variants, panels + 1)
    values  density at the nodes of a panel times half its width, relative to the peak: times the weights, summed, its mass
    masses  of the panels, shape (..., variants, panels); they sum to a total that is not 1
    """

    edges: Floats
    values: Floats
    masses: Floats


def own_panels(found: Betas) -> OwnPanels:
    """Return each distribution on panels of its own."""
    edges = own_edges(found)
    half = np.diff(edges)[..., None] / 2
    spread = (..., None, None)
    distance = edges[..., :-1, None] + half * (NODES + 1) - found.peak[spread]
    values = relative_density(found.a[spread], found.b[spread], distance) * half
    return OwnPanels(edges, values, values @ WEIGHTS)


class Panels(NamedTuple):
    """Panels of the log-odds axis with densities and distribution functions at their nodes.

    They begin where the variant that begins last does: below, the best of all has a probability of 1e-13.

    points    nodes, shape (..., panels, nodes)
    measure   weight of each node in an integral, the same shape
    density   of each variant, shape (..., variants, panels, nodes)
    below     probability below each node, the same shape
    alive     indexes of the variants, which are all that reach into the panels; the others are never the best
    """

    points: Floats
    measure: Floats
    density: Floats
    below: Floats
    alive: NDArray[np.intp]


def _thinned(edges: Floats, start: float) -> Floats:
    """Return the union of the edges of several distributions without those that no resolution is lost by leaving out.

    start   where the first panel begins; one of the edges

    An edge may go as long as the panel that then contains it is no wider than the distribution's own panels beside it.
    """
    widths = np.diff(edges, axis=-1)
    allowed = np.concatenate([widths, widths[:, -1:]], axis=-1)
    allowed[:, 1:] = np.minimum(allowed[:, 1:], widths)
    inside = edges >= start
    places, limits = edges[inside], allowed[inside]
    order = np.argsort(places)
    places, limits = places[order].tolist(), limits[order].tolist()
    kept, last, limit = [places[0]], places[0], np.inf
    for place, width in zip(places[1:], limits[1:], strict=True):
        if place - kept[-1] > limit:
            kept.append(last)
            limit = np.inf
        last, limit = place, min(limit, width)
    return np.array([*kept, last])


def common_panels(found: Betas, own: OwnPanels) -> Panels:
    """Return panels that resolve together all that may be best of an experiment; experiments lie along the leading axes."""
    start = own.edges[..., 0].max(axis=-1)[..., None]
    alive = np.arange(own.edges.shape[-2])
    if own.edges.ndim == 2:
        alive = np.flatnonzero(own.edges[:, -1] > start)
        edges = _thinned(own.edges[alive], float(start[0]))
    else:
        edges = np.maximum(np.sort(own.edges.reshape(*own.edges.shape[:-2], -1), axis=-1), start)
    half = np.diff(edges)[..., None] / 2
    points = edges[..., :-1, None] + half * (NODES + 1)
    measure = half * WEIGHTS
    a, b, peak = (field[..., alive, None, None] for field in (found.a, found.b, found.peak))
    density = relative_density(a, b, points[..., None, :, :] - peak)
    total = own.masses[..., alive, :].sum(axis=-1)[..., None]
    density /= total[..., None]
    masses = np.einsum("...vpn,...pn->...vp", density, measure)
    # What lies below the first panel is what those from there on leave.
    before = np.cumsum(masses, axis=-1) - masses + (1 - masses.sum(axis=-1, keepdims=True))
    below = (density @ CUMULATIVE) * half[..., None, :, :]
    below += before[..., None]
    return Panels(points, measure, density, below, alive)


def others_below(below: Floats) -> Floats:
    """Return, for each variant, the product over all others of the probability below: the variants are axis -3."""
    product = np.ones_like(below)
    running = np.ones_like(below[..., 0, :, :])
    for index in range(below.shape[-3]):
        product[..., index, :, :] *= running
        running = running * below[..., index, :, :]
    running = np.ones_like(running)
    for index in reversed(range(below.shape[-3])):
        product[..., index, :, :] *= running
        running = running * below[..., index, :, :]
    return product
