"""Where rising functions are zero, for many at once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = NDArray[np.float64]

_STEPS_MAX: Final = 200  # every fourth halves the bracket, so 50 halvings at least: a double has no more to give


def rising_root(
    guess: Floats, low: Floats, high: Floats, excess: Callable[[Floats], Floats], *, value_error: float, place_error: float
) -> Floats:
    """Return where the rising function `excess` is zero, between `low` and `high`, element by element.

    Secant steps from the guess; one that leaves the bracket, and every fourth, is a bisection, so that it always ends.
    Without a
    zero in the bracket the end that is nearest to one is returned.

    excess       takes an array of places to an array of values of the same shape
    value_error  an absolute value below it counts as zero
    place_error  a bracket narrower than this ends the search
    source       W. H. Press et al., "Numerical Recipes", 3rd edition, 9.2 and 9.3
    """
    before, before_value = low, np.full_like(low, -1.0)
    here = guess
    for step in range(1, _STEPS_MAX):
        value = excess(here)
        low, high = np.where(value < 0, here, low), np.where(value < 0, high, here)
        done = (np.abs(value) < value_error) | (high - low <= place_error)
        if done.all():
            break
        slope = (value - before_value) / np.where(here == before, 1.0, here - before)
        following = here - value / np.where(slope > 0, slope, 1.0)
        inside = (slope > 0) & (following > low) & (following < high) & (step % 4 != 0)
        before, before_value = here, value
        here = np.where(done, here, np.where(inside, following, (low + high) / 2))
    return here
