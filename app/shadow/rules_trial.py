"""Evaluates rules: the champion for the caller, and after the answer is on its way the challenger beside the champion again.

What waits to be compared is bounded in number and bytes. What does not fit is dropped and counted: a caller never waits for
a comparison, and a challenger that fails, or spends its whole budget, costs a caller nothing but its slice of a turn.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.clock import now_ms
from app.shadow.expression_run import BudgetSpent, EvaluationFailed
from app.shadow.rules_difference import TIMEOUT, Judged, difference
from app.shadow.rules_tally import Tally
from app.turns import Pace, end_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.shadow.expression import Expression
    from app.shadow.rules_definition import Rule
    from app.shadow.rules_difference import Difference

WAITING_MAX: Final = 1_000  # evaluations that wait to be compared: about 50 ms of work for ordinary rules
WAITING_BYTES_MAX: Final = 8 << 20  # of their inputs, as they came
# The answer is written in the turn of the loop in which it is made, or the next: comparisons begin after that.
SETTLE_S: Final = 0.001
SAMPLES_A_ROUND: Final = 5  # of each kind and trial between two calls of `take_differing`; a flood of one kind says the same
SLICE_S: Final = 0.001  # of comparisons in one turn of the loop, before requests are looked at again
SHARE: Final = 0.25  # of the loop's time that comparisons take at most; the rest is for callers

Trial = tuple[int, int]  # rule id, number


class Compared(NamedTuple):
    """A comparison that differs, for whoever keeps samples. `noisy`: the champion differed from itself as well."""

    at_ms: int
    rule: Rule
    data: dict[str, Any]
    champion: Judged
    challenger: Judged
    difference: Difference
    noisy: bool


class _Waiting(NamedTuple):
    rule: Rule
    data: dict[str, Any]
    champion: Judged
    size_bytes: int


def judge(expression: Expression, data: dict[str, Any]) -> Judged:
    """Evaluate an expression; what goes wrong in it is a failure of the evaluation, never an exception."""
    started = time.perf_counter_ns()
    answer, failure = None, None
    try:
        answer, _ = expression.evaluate(data)
    except EvaluationFailed as error:
        failure = str(error)
    except BudgetSpent:
        failure = TIMEOUT
    return Judged(answer, failure, (time.perf_counter_ns() - started) // 1_000)


class Trials:
    """Answers callers, compares in the background, and counts. One per process."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        """`draw` gives [0, 1) and decides what is compared where a rule asks for a share of its evaluations."""
        self._draw = draw
        self._differing: list[Compared] = []
        self._kept: Counter[tuple[Trial, str]] = Counter()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.tallies: Final[dict[Trial, Tally]] = {}
        self.changed: Final[set[Trial]] = set()
        self.compared = 0  # since the start
        self.dropped = 0  # since the start

    @property
    def waiting(self) -> int:
        """How many evaluations wait to be compared."""
        return len(self._waiting)

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to compare; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name="rules in shadow")

    async def stop(self) -> None:
        """Compare no more; what waits is counted as dropped."""
        if self._task is not None:
            await end_task(self._task)
        while self._waiting:
            self._drop(self._waiting.popleft().rule)

    def answer(self, rule: Rule, data: dict[str, Any], size_bytes: int) -> Judged:
        """Return the champion's answer, and note the evaluation for a comparison. No I/O, and no wait."""
        judged = judge(rule.champion.expression, data)
        tally = self.tally(rule)
        tally.answered(judged)
        if rule.challenger is None:
            return judged
        if rule.settings.shadow_rate < 1.0 and self._draw() >= rule.settings.shadow_rate:
            tally.sampled_out += 1
        elif len(self._waiting) >= WAITING_MAX or self._waiting_bytes + size_bytes > WAITING_BYTES_MAX:
            self._drop(rule)
        else:
            self._waiting.append(_Waiting(rule, data, judged, size_bytes))
            self._waiting_bytes += size_bytes
            self._wake.set()
        return judged

    def tally(self, rule: Rule) -> Tally:
        """Return this process's counts of a rule's trial, which are about to change."""
        trial = (rule.rule_id, rule.trial)
        self.changed.add(trial)
        tally = self.tallies.get(trial)
        if tally is None:
            challenger = None if rule.challenger is None else rule.challenger.name
            tally = self.tallies[trial] = Tally(rule.champion.name, challenger)
        return tally

    def take_differing(self) -> list[Compared]:
        """Return the comparisons that differed since the last call, few of each trial and kind, and forget them."""
        taken, self._differing = self._differing, []
        self._kept.clear()
        return taken

    def _drop(self, rule: Rule) -> None:
        self.dropped += 1
        self.tally(rule).dropped += 1

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(SETTLE_S)
                await self._compare_all()
                self._wake.clear()
        except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
            on_crash(error)

    async def _compare_all(self) -> None:
        pace = Pace(SHARE, SLICE_S)
        while self._waiting:
            self._compare(self._waiting.popleft())
            await pace.keep()

    def _compare(self, waiting: _Waiting) -> None:
        """Evaluate challenger and champion side by side, and hold both against the answer that the caller got."""
        self._waiting_bytes -= waiting.size_bytes
        rule = waiting.rule
        if rule.challenger is None:
            raise AssertionError("what waits has a challenger")
        challenger = judge(rule.challenger.expression, waiting.data)
        control = judge(rule.champion.expression, waiting.data)
        differs = difference(waiting.champion, challenger, rule.settings.ignored_fields)
        noise = difference(waiting.champion, control, rule.settings.ignored_fields)
        self.compared += 1
        self.tally(rule).seen(challenger, differs, noise)
        place = ((rule.rule_id, rule.trial), differs.kind)
        if differs.kind != "same" and self._kept[place] < SAMPLES_A_ROUND:
            self._kept[place] += 1
            noisy = noise.kind != "same"
            self._differing.append(Compared(now_ms(), rule, waiting.data, waiting.champion, challenger, differs, noisy))
