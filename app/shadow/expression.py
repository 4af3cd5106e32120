"""The language of rules: a part of CEL, compiled to closures, with a budget that no expression can exceed. Pure.

    input.amount > 1000 && !(input.country in ["DE", "AT"]) ? "review" : "allow"

An expression has one variable, `input`, the JSON object that is judged, and gives a JSON value: often a word, a number
or a boolean, or an object such as `{"decision": "review", "score": 0.7}`. It reads nothing else, changes nothing, and
cannot loop: only `all`, `exists`, `exists_one`, `map` and `filter` go over a list, or over the keys of an object.

What is here means what CEL says (language definition of cel-spec): integers of 64 bits whose overflow is an error,
doubles, texts, booleans, null, lists, objects; `&&`, `||`, `all` and `exists` give an answer that one side alone
decides, even when the other side fails; `==` between different types is false. Beyond CEL: an integer and a double may
be added, subtracted, multiplied and divided, and there are `now()`, `random()` and `bucket(seed, unit)`. Left out: regular
expressions (no bound on their time), bytes, unsigned integers, timestamps, protocol buffers, the text of a double, and the
integer of a boolean.

Budget: every part of the expression takes one step, a part inside a macro one for each member, and what is made or looked
through takes steps by its size (`STEPS_MAX` of `app.shadow.expression_run`). The count depends on the expression and its
input alone, so every replica gives the same answer, and memory is bounded with it. Functions, methods and macros:
`app.shadow.expression_calls`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

from app.clock import now_ms
from app.shadow.expression_parts import compile_node, weight_of
from app.shadow.expression_run import STEPS_MAX, BudgetSpent, EvaluationFailed, Part, Run, Value
from app.shadow.expression_text import parse

ANSWER_NODES_MAX: Final = 1_000  # values in one answer; a decision has a few


class Expression:
    """A compiled expression. Immutable; evaluations may interleave."""

    def __init__(self, text: str) -> None:
        """Raises ExpressionRefused."""
        self.text: Final = text
        tree = parse(text)
        self._part: Final[Part] = compile_node(tree, frozenset())
        self._steps: Final = weight_of(tree)

    def evaluate(
        self,
        data: dict[str, Value],
        *,
        time_ms: Callable[[], int] = now_ms,
        chance: Callable[[], float] = random.random,
    ) -> tuple[Value, int]:
        """Return the answer to one input, and the steps that it took.

        data     JSON object; it is not changed, and the answer may share parts of it
        time_ms  what `now()` gives; `chance` what `random()` gives
        Raises EvaluationFailed and BudgetSpent.
        """
        run = Run(data, time_ms, chance)
        try:
            run.spend(self._steps)
            answer = self._part(run)
            _check_answer(answer, run)
        except RecursionError:
            raise BudgetSpent from None
        return answer, STEPS_MAX - run.left


def _check_answer(answer: Value, run: Run) -> None:
    """Refuse an answer that JSON cannot carry, or that is larger than an answer may be."""
    waiting = [answer]
    seen = 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > ANSWER_NODES_MAX:
            raise BudgetSpent
        if type(value) is float and not math.isfinite(value):
            raise EvaluationFailed("the answer holds a number that JSON has not")
        if type(value) is list:
            waiting.extend(value)
        elif type(value) is dict:
            waiting.extend(value.values())
    run.spend(seen // 8)
