"""Independent ways to the figures of Beta posteriors: closed sums, and one fine uniform grid with constants from lgamma."""

from __future__ import annotations

import math

import numpy as np

STEPS = 60_000


def log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def second_is_better(successes: list[int], samples: list[int]) -> float:
    """Return P(p_1 > p_0) under flat priors: E. Miller, "Formulas for Bayesian A/B Testing", formula for two variants."""
    (a0, b0), (a1, b1) = ((hits + 1, count - hits + 1) for hits, count in zip(successes, samples, strict=True))
    return math.fsum(
        math.exp(log_beta(a0 + i, b1 + b0) - math.log(b1 + i) - log_beta(1 + i, b1) - log_beta(a0, b0)) for i in range(a1)
    )


def upper_tail(p: float, hits: int, count: int) -> float:
    """Return P(rate > p) under a flat prior: a binomial sum, since I_p(a, b) is one for whole a and b (DLMF 8.17.5)."""
    n = count + 1
    return math.fsum(
        math.exp(
            math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        )
        for i in range(hits + 1)
    )


def by_grid(successes: list[int], samples: list[int]) -> tuple[list[float], list[float]]:
    """Return P(best) and expected loss of each variant by the trapezoidal rule on a uniform grid of log-odds."""
    a = np.array(successes) + 1.0
    b = np.array(samples) - np.array(successes) + 1.0
    spread = np.sqrt(1 / a + 1 / b)
    low = (np.log(a / b) - spread * (8 + 20 / np.sqrt(a))).min()
    high = (np.log(a / b) + spread * (8 + 20 / np.sqrt(b))).max()
    t = np.linspace(low, high, STEPS)
    step = t[1] - t[0]
    constants = np.array([-log_beta(one, other) for one, other in zip(a, b, strict=True)])
    density = np.exp(a[:, None] * t - (a + b)[:, None] * np.logaddexp(0, t) + constants[:, None]) * step
    below = np.cumsum(density, axis=1) - density / 2
    each = [density[i] * np.prod(np.delete(below, i, 0), axis=0) for i in range(len(a))]
    highest = float((sum(each) / (1 + np.exp(-t))).sum())
    return [float(one.sum()) for one in each], [highest - mean for mean in a / (a + b)]


def ratio_below(ratio: float, successes: list[int], samples: list[int]) -> float:
    """Return P(p_1 / p_0 <= ratio): the exact tail of p_1, a binomial sum, averaged over p_0 on a grid of log-odds."""
    a, b = successes[0] + 1, samples[0] - successes[0] + 1
    spread, middle = math.sqrt(1 / a + 1 / b), math.log(a / b)
    steps = min(30_000, 80_000 // (successes[1] + 1))
    t = np.linspace(middle - spread * (8 + 20 / math.sqrt(a)), middle + spread * (8 + 20 / math.sqrt(b)), steps)
    weights = np.exp(a * t - (a + b) * np.logaddexp(0, t) - log_beta(a, b)) * (t[1] - t[0])
    rates = ratio / (1 + np.exp(-t))
    return math.fsum(
        weight * (1 - upper_tail(rate, successes[1], samples[1]) if rate < 1 else 1.0)
        for weight, rate in zip(weights.tolist(), rates.tolist(), strict=True)
        if weight > 1e-14
    )
