"""One evaluation of an expression: its budget, and what all parts of the language know about values. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from app.shadow.expression_text import INT_MAX, INT_MIN

STEPS_MAX: Final = 5_000  # of one evaluation: 1 to 4 ms of processor time; an ordinary rule takes 10 to 50
# Bytes of what is looked through or made that one step pays for: a step is about 0.2 us, and so is copying this much.
STEP_BYTES: Final = 64

Value = Any  # None, bool, int, float, str, list or dict of them
Part = Callable[["Run"], Value]


class EvaluationFailed(Exception):
    """The expression has no answer for this input: a field is missing, a type is wrong. Holds no value of the input."""


class BudgetSpent(Exception):
    """The evaluation took more than its steps. No operator absorbs this."""


class Run:
    """One evaluation: input, names of macros, what is left of the budget, and the clock and chance of this run."""

    __slots__ = ("chance", "input", "left", "names", "time_ms")

    def __init__(self, data: dict[str, Value], time_ms: Callable[[], int], chance: Callable[[], float]) -> None:
        """Begin with the whole budget."""
        self.input = data
        self.names: dict[str, Value] = {}
        self.left = STEPS_MAX
        self.time_ms = time_ms
        self.chance = chance

    def spend(self, steps: int) -> None:
        """Take steps; raises BudgetSpent when too few are left."""
        self.left -= steps
        if self.left < 0:
            raise BudgetSpent


def size_steps(value: Value) -> int:
    """Return the steps that looking through a text, list or object once takes, beyond the one of its part."""
    return len(value) * (1 if type(value) is str else 8) // STEP_BYTES


def whole(value: int) -> int:
    """Return an integer of 64 bits. Raises EvaluationFailed for any other."""
    if INT_MIN <= value <= INT_MAX:
        return value
    raise EvaluationFailed("an integer is beyond 64 bits")


def equal(left: Value, right: Value, run: Run) -> bool:
    """Whether two values are equal as CEL says: numbers by their value, other types never with each other."""
    kind, other = type(left), type(right)
    if kind is str and other is str:
        run.spend(min(len(left), len(right)) // STEP_BYTES)
        return bool(left == right)
    if kind is list and other is list:
        if len(left) != len(right):
            return False
        run.spend(2 + 2 * len(left))
        return all(equal(one, two, run) for one, two in zip(left, right, strict=True))
    if kind is dict and other is dict:
        if len(left) != len(right):
            return False
        run.spend(2 + 2 * len(left))
        return all(key in right and equal(value, right[key], run) for key, value in left.items())
    if kind in {int, float} and other in {int, float}:
        return bool(left == right)
    return kind is other and bool(left == right)
