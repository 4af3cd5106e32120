"""What a piece of work costs: the least processor time of this thread, whatever else runs on the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

ROUNDS_MAX: Final = 30  # another process on the same core doubles a round; that it does so every time is not to be expected
CLOCK_SAYS_S: Final = 0.02  # below this, the clock says little about a ratio


def cost_s(work: Callable[[], object]) -> float:
    """Return the processor seconds that this thread spends on `work`, once."""
    started_s = time.thread_time()
    work()
    return time.thread_time() - started_s


def least_cost_s(work: Callable[[], object], enough_s: float) -> float:
    """Return the least processor seconds of `work`: measured again until it is below `enough_s`, at most ROUNDS_MAX times."""
    least_s = cost_s(work)
    for _ in range(ROUNDS_MAX - 1):
        if least_s < enough_s:
            break
        least_s = min(least_s, cost_s(work))
    return least_s


def grows_below(factor: float, small: Callable[[], object], large: Callable[[], object]) -> bool:
    """Whether `large` costs less than `factor` times `small`, both at their least of at most ROUNDS_MAX rounds."""
    small_s = large_s = float("inf")
    for _ in range(ROUNDS_MAX):
        small_s, large_s = min(small_s, cost_s(small)), min(large_s, cost_s(large))
        if large_s < factor * max(small_s, CLOCK_SAYS_S):
            return True
    return False
