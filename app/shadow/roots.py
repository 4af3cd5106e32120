"""Where rising functions are zero, for many at once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = NDArray[np.float64]

_BISECTION_EVERY: Final = 6  # steps: what secant steps need for nine digits, so that most searches have none
_FLAT: Final = 1e-300  # a slope that is no slope: the step leaves every bracket
_STEPS_MAX: Final = 360  # 60 halvings at least: a double has no more to give


def rising_root(
    guess: Floats,
    bracket: tuple[Floats, Floats],
    slope: Floats,
    excess: Callable[[Floats], Floats],
    *,
    value_error: float | Floats,
    place_error: float = 0.0,
) -> Floats:
    """Return where the rising function `excess` is zero, inside the bracket, element by element.

    Secant steps from the guess; one that leaves the bracket, and every sixth, is a bisection, so that it always ends.
    Without a
    zero in the bracket the end that is nearest to one is returned.

    slope        what it is expected to be, for the first step
    excess       takes an array of places to an array of values of the same shape
    value_error  an absolute value below it counts as zero
    place_error  a bracket narrower than this ends the search
    source       W. H. Press et al., "Numerical Recipes", 3rd edition, 9.2 and 9.3
    """
    low, high = bracket
    here, before, before_value = guess, guess, guess
    for step in range(1, _STEPS_MAX):
        value = excess(here)
        low, high = np.where(value < 0, here, low), np.where(value < 0, high, here)
        done = (np.abs(value) < value_error) | (high - low <= place_error)
        if done.all():
            break
        if step > 1:
            moved = here != before
            slope = np.where(moved, (value - before_value) / np.where(moved, here - before, 1.0), slope)
        rises = slope > 0
        following = here - value / np.where(rises, slope, 1.0)
        inside = rises & (following > low) & (following < high) & (step % _BISECTION_EVERY != 0)
        before, before_value = here, value
        here = np.where(done, here, np.where(inside, following, (low + high) / 2))
    return here


def newton_root(
    guess: Floats,
    bracket: tuple[Floats, Floats],
    excess: Callable[[Floats, NDArray[np.intp]], tuple[Floats, Floats]],
    *,
    near: float,
) -> Floats:
    """Return where rising functions are zero, each inside its bracket: Newton's steps, a bisection where one leaves it.

    guess    of each function, shape (functions,), inside its bracket
    excess   takes places and which functions they are of; returns values and slopes. Who has ended is not asked again
    near     an absolute value below it ends the search with the step from there, which leaves about its square times half
             the curvature over the squared slope; that is 20 where 2.5 % of a distribution lie beyond
    source   W. H. Press et al., "Numerical Recipes", 3rd edition, 9.4
    """
    here, rows = guess.copy(), np.arange(len(guess))
    low, high = bracket
    for step in range(1, _STEPS_MAX):
        place = here[rows]
        value, slope = excess(place, rows)
        low, high = np.where(value < 0, place, low), np.where(value < 0, high, place)
        following = place - value / np.maximum(slope, _FLAT)
        left = np.abs(value) >= near
        inside = (following >= low) & (following <= high) & ((step % _BISECTION_EVERY != 0) | ~left)
        here[rows] = np.where(inside, following, np.where(left, (low + high) / 2, place))
        rows, low, high = rows[left], low[left], high[left]
        if not len(rows):
            break
    return here
