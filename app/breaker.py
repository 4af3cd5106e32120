"""A circuit breaker: stops calls to what keeps failing, and finds out with one call at a time whether it is back.

    closed ──3 failures in a row, or half of 10 calls in 10 s──> open ──30 s──> half open ──one success──> closed
                                                                   ^               │
                                                                   └──one failure──┘ 60, 120, 240, 300 s, +-20 %

Nothing here waits, locks or reads a clock: callers pass a monotonic time in seconds, and use one breaker from one
thread. A breaker counts what it is told; callers tell it faults only (no connection, timeout, 5xx), never a refusal of
the request itself, and never a call that was given up by its own caller.

Sources: "Release It!" (Nygard) for the states; gRPC proposal A50 and Envoy's outlier detection for backing off and for
the share that may be open.
"""

from __future__ import annotations

import math
import random
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    OnChange = Callable[["Breaker", "BreakerState", float], None]  # told of every change: state before, time

_NEVER_S: Final = float("-inf")
# A window is one integer with a digit for each second, the current one lowest: 64 bytes for 10 s, and one shift lets it
# age. A digit holds more calls than a process answers in that time.
_COUNT_BITS: Final = 24


class BreakerState(StrEnum):
    """Whether calls pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # the open time is over: one call may find out


class Admission(Enum):
    """The answer to "may this call be made?". A PROBE must end in `record(probe=True)` or `cancel_probe`."""

    CALL = "call"
    PROBE = "probe"
    REFUSED = "refused"


class BreakerPolicy(msgspec.Struct, frozen=True, gc=False):
    """When a breaker opens and how it comes back. Times in seconds."""

    failures_in_row: int = 3
    window_s: int = 10  # in buckets of a second
    window_calls_min: int = 10  # below this a rate means nothing
    window_failure_share: float = 0.5
    open_s: float = 30.0
    open_max_s: float = 300.0
    jitter: float = 0.2  # of every open time but the first, either way, so that replicas do not probe in step
    probe_lease_s: float = 30.0  # a probe that is never reported blocks the next one for so long
    quiet_s: float = 60.0  # closed for so long without opening again takes back one step of backing off
    reporter_memory_s: float = 60.0  # a reporter that was heard of within this could have confirmed the failure

    @property
    def steps_max(self) -> int:
        """Return how often the open time doubles until it is the longest one."""
        return max(0, math.ceil(math.log2(self.open_max_s / self.open_s)))


POLICY: Final = BreakerPolicy()
# For our own Redis and Postgres: a probe harms nobody there, and callers try again for 0.3 s. So open only for moments,
# and find out often.
STORE_POLICY: Final = BreakerPolicy(open_s=0.1, open_max_s=1.0, probe_lease_s=3.0, quiet_s=10.0)


class OpenBudget:
    """How many of a group of breakers may be open at once: the rest keep serving, marked as degraded."""

    __slots__ = ("limit", "taken")

    def __init__(self, limit: int = 0) -> None:
        """`limit` may be changed at any time; what is open beyond a lowered limit stays open."""
        self.limit = limit
        self.taken = 0

    def take(self) -> bool:
        """Return whether one more may open, and count it."""
        if self.taken >= self.limit:
            return False
        self.taken += 1
        return True

    def give(self) -> None:
        """Count one less."""
        self.taken -= 1


class Reporters:
    """When the last reporter was heard of, and when any other one was."""

    __slots__ = ("last", "last_s", "other_s")

    def __init__(self) -> None:
        """Nobody was heard of yet."""
        self.last = ""
        self.last_s = self.other_s = _NEVER_S

    def hear(self, reporter: str, now_s: float) -> None:
        """Note that this one reports."""
        if reporter != self.last:
            self.last, self.other_s = reporter, self.last_s
        self.last_s = now_s


def _sum_of(counts: int) -> int:
    """Return the sum of a window's digits: a number is congruent to it modulo one less than the digits' radix."""
    return counts % ((1 << _COUNT_BITS) - 1)


class Breaker:
    """One breaker. `name` says what it guards, `opened` counts how often it has opened.

    `isolated` means that a person has opened it: only `reset` closes it. `degraded` means that it would be open, but
    too many of its group are.
    """

    __slots__ = (
        "_budget", "_calls", "_closed_since_s", "_draw", "_failed_by", "_failed_other_s", "_failed_s", "_failures", "_heard",
        "_level", "_on_change", "_open", "_open_until_s", "_policy", "_probe_until_s", "_row", "_row_since_s", "_second",
        "degraded", "isolated", "name", "opened",
    )  # fmt: skip
    _row: int
    _row_since_s: float
    _second: int
    _calls: int
    _failures: int
    _failed_by: str
    _failed_s: float
    _failed_other_s: float

    def __init__(
        self,
        name: str,
        policy: BreakerPolicy = POLICY,
        *,
        budget: OpenBudget | None = None,
        heard: Reporters | None = None,
        on_change: OnChange | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`budget` and `heard`, who reports at all, are shared by the breakers of a group; `draw` gives [0, 1)."""
        self.name = name
        self.isolated = self.degraded = False
        self.opened = 0
        self._policy = policy
        self._budget = budget
        self._on_change = on_change
        self._draw = draw
        self._open = False
        self._open_until_s = 0.0
        self._probe_until_s = _NEVER_S
        self._level = 0  # how often it has opened again without a quiet time in between
        self._closed_since_s = 0.0
        self._heard = heard or Reporters()
        self._forget()

    def state(self, now_s: float) -> BreakerState:
        """Return the state; half open begins by itself when the open time is over."""
        if self.isolated:
            return BreakerState.OPEN
        if not self._open:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self._open_until_s else BreakerState.HALF_OPEN

    @property
    def retry_at_s(self) -> float:
        """When a probe may be made: in the past while closed, never while isolated."""
        if self.isolated:
            return float("inf")
        return max(self._open_until_s, self._probe_until_s) if self._open else _NEVER_S

    def admits(self, now_s: float) -> bool:
        """Whether `admit` would let a call pass. Changes nothing."""
        return now_s >= self.retry_at_s

    def admit(self, now_s: float) -> Admission:
        """Decide about a call that is about to be made. A probe is lent to its caller for `probe_lease_s`.

        The first probe of an open time is when "half open" is told: time alone tells nobody.
        """
        if now_s < self.retry_at_s:
            return Admission.REFUSED
        if not self._open:
            return Admission.CALL
        first = self._probe_until_s < self._open_until_s
        self._probe_until_s = now_s + self._policy.probe_lease_s
        if first:
            self._tell(BreakerState.OPEN, now_s)
        return Admission.PROBE

    def record(self, now_s: float, *, ok: bool, reporter: str = "", probe: bool = False) -> None:
        """Count the outcome of a call, as told by `reporter`.

        While it is open only the probe's outcome matters: the others were sent before it opened, or in spite of it.
        """
        self._heard.hear(reporter, now_s)
        if self._open or self.isolated:
            if probe and self._open and not self.isolated:
                self._probe_until_s = _NEVER_S
                if ok:
                    self._close(now_s)
                else:
                    self._back_off()
                    self._open_for(now_s, BreakerState.HALF_OPEN)
            return
        self._age(now_s)
        self._calls += 1
        if ok:
            self._row = 0
            self.degraded = False
            return
        self._failures += 1
        if reporter != self._failed_by:
            self._failed_by, self._failed_other_s = reporter, self._failed_s
        self._failed_s = now_s
        if self._row == 0:
            self._row_since_s = now_s
        self._row += 1
        if self._is_tripped(now_s):
            self._trip(now_s)

    def cancel_probe(self) -> None:
        """Take back the probe that was lent: it has no outcome. The next call may be one."""
        self._probe_until_s = min(self._probe_until_s, self._open_until_s)

    def isolate(self, now_s: float) -> None:
        """Open it until `reset`, whatever the budget says: a person knows why."""
        if not self.isolated:
            before = self.state(now_s)
            self.isolated = True
            self._tell(before, now_s)

    def reset(self, now_s: float) -> None:
        """Close it and forget what it has counted."""
        before = self.state(now_s)
        self.isolated = False
        self._level = 0
        self._clear(now_s)
        self._tell(before, now_s)

    def retire(self) -> None:
        """Give back its part of the budget: what it guarded is gone."""
        if self._open and self._budget is not None:
            self._budget.give()
        self._open = False

    def is_spent(self, now_s: float) -> bool:
        """Whether a new one would do the same: closed, no failure in its window, every step of backing off taken back."""
        if self._open or self.isolated or self._row or self._backing_off(now_s):
            return False
        self._age(now_s)
        return not self._failures

    def _age(self, now_s: float) -> None:
        """Let the window end at this second; a time that went back counts as now."""
        second = int(now_s)
        if second > self._second:
            size = self._policy.window_s
            shift = min(second - self._second, size) * _COUNT_BITS
            mask = (1 << size * _COUNT_BITS) - 1
            self._calls = (self._calls << shift) & mask
            self._failures = (self._failures << shift) & mask
            self._second = second

    def _is_tripped(self, now_s: float) -> bool:
        """Whether the counts say open, and no reporter says so alone while others could have confirmed it."""
        policy = self._policy
        alone = self._heard.other_s < now_s - policy.reporter_memory_s
        if self._row >= policy.failures_in_row and (alone or self._failed_other_s >= self._row_since_s):
            return True
        calls = _sum_of(self._calls)
        if calls < policy.window_calls_min or _sum_of(self._failures) < policy.window_failure_share * calls:
            return False
        return alone or self._failed_other_s >= now_s - policy.window_s

    def _back_off(self) -> None:
        """Take one step, up to the one that reaches the longest open time: more would only be taken back for longer."""
        self._level = min(self._level + 1, self._policy.steps_max)

    def _backing_off(self, now_s: float) -> int:
        """Return the steps of backing off that quiet times have not taken back."""
        return max(0, self._level - int((now_s - self._closed_since_s) / self._policy.quiet_s)) if self._level else 0

    def _trip(self, now_s: float) -> None:
        if self._budget is not None and not self._budget.take():
            self.degraded = True
            return
        self._level = self._backing_off(now_s)
        self._open = True
        self.degraded = False
        self._open_for(now_s, BreakerState.CLOSED)

    def _open_for(self, now_s: float, before: BreakerState) -> None:
        policy = self._policy
        seconds = min(policy.open_s * 2.0**self._level, policy.open_max_s)
        if self._level:
            seconds = min(seconds * (1 + policy.jitter * (2 * self._draw() - 1)), policy.open_max_s)
        self._open_until_s = now_s + seconds
        self.opened += 1
        self._tell(before, now_s)

    def _close(self, now_s: float) -> None:
        self._back_off()  # opening again soon lasts longer; quiet times take this back
        self._clear(now_s)
        self._tell(BreakerState.HALF_OPEN, now_s)

    def _clear(self, now_s: float) -> None:
        self.retire()
        self.degraded = False
        self._probe_until_s = _NEVER_S
        self._closed_since_s = now_s
        self._forget()

    def _forget(self) -> None:
        """Begin to count anew."""
        self._row = 0  # failures since the last success
        self._row_since_s = 0.0
        self._second = self._calls = self._failures = 0
        self._failed_by = ""
        self._failed_s = self._failed_other_s = _NEVER_S

    def _tell(self, before: BreakerState, now_s: float) -> None:
        if self._on_change is not None and before is not self.state(now_s):
            self._on_change(self, before, now_s)
