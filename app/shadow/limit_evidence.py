"""Evidence, valid at every look, that a rate is above an absolute limit: errors, or calls slower than a limit. Pure.

One sample, no control: under the hypothesis that each sample fails with probability at most L, given all before it, the
product of (q / L) for failures and ((1 - q) / (1 - L)) for the rest is a supermartingale for any q > L, and so is an
average over q. Failures and samples are all that it needs, and counts merge exactly. "The 95th percentile of latency is
at most T ms" is the hypothesis that at most 5 % of the calls take longer than T: count those as failures with a limit of
0.05.

Sources: A. Wald, "Sequential Analysis", 1947 (test of a binomial proportion); J. Ville, 1939; A. Ramdas et al., 2023.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

SAMPLES_MAX: Final = 10**12
_LOG_MAX: Final = 700.0  # nats; e^700 is near the largest double, and JSON has no infinity
_BETS_COUNT: Final = 48


def limit_e_value(failures: int, samples: int, limit: float) -> float:
    """Return the evidence that the rate of failures is above `limit`: 1 without samples, 50 is much.

    While no sample's probability of failing is above the limit, it ever reaches 1 / alpha with probability at most alpha.
    Judge it by `evidence.crossed`.

    limit   above 0 and below 1
    faults  ValueError that names what is wrong
    """
    if not 0 <= failures <= samples <= SAMPLES_MAX:
        raise ValueError(f"there must be 0 <= failures <= samples <= {SAMPLES_MAX}")
    if not 0 < limit < 1:
        raise ValueError("the limit must be above 0 and below 1")
    # Bets on the odds: from 2 % above those of the limit to 3,000 times them, evenly on a doubly logarithmic scale.
    distance = np.exp(np.linspace(math.log(0.02), math.log(8.0), _BETS_COUNT))
    weights = np.full(_BETS_COUNT, 1 / _BETS_COUNT)
    # log((1 - q) / (1 - L)) = -log(1 + L (e^d - 1)) and log(q / L) = d more: no difference of near-equal numbers.
    passed = -np.log1p(limit * np.expm1(distance))
    exponents = failures * distance + samples * passed + np.log(weights)
    top = float(exponents.max())
    total = float(np.exp(exponents - top).sum())
    return math.exp(min(top + math.log(total), _LOG_MAX))
