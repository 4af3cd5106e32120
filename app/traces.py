"""What is noted of a request that is traced: steps with a beginning and an end, made into spans when it is over.

Tracing is off unless somebody asked for it. Then the parts that note steps (`app.web.traced`, `app.credits.traced`) stand in
for the usual ones; nothing of this runs without them.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

STEPS_MAX: Final = 64  # of one request: a batch over 16 shards; what comes then is left out


class Step(NamedTuple):
    """A part of a request. Times are monotonic, ns; `inside` is the index of the step that it is a part of, None for all."""

    name: str
    started_ns: int
    ended_ns: int
    facts: Mapping[str, int]
    inside: int | None
    failed: bool


class Trace:
    """One request on its way. Facts are numbers: no name that a caller chose is noted.

    parent          what `Traces.begin` made of the caller's `traceparent`, for `Traces.end`
    wall_offset_ns  what makes Unix time of monotonic time, ns: the same for all that share a batch
    """

    __slots__ = ("closed", "parent", "started_ns", "steps", "wall_offset_ns")

    def __init__(self, parent: object, wall_offset_ns: int) -> None:
        """Begin now."""
        self.parent: Final = parent
        self.wall_offset_ns: Final = wall_offset_ns
        self.started_ns: Final = time.monotonic_ns()
        self.steps: Final[list[Step]] = []
        self.closed = False

    def note(
        self, name: str, started_ns: int, ended_ns: int, facts: Mapping[str, int], *, inside: int | None = None,
        failed: bool = False,
    ) -> int:  # fmt: skip
        """Note a step and return its index. What is noted after the request has ended is lost."""
        if not self.closed and len(self.steps) < STEPS_MAX:
            self.steps.append(Step(name, started_ns, ended_ns, facts, inside, failed))
        return len(self.steps) - 1


class Traces(Protocol):
    """Decides which requests are traced, and takes them when they are over."""

    def begin(self, headers: Mapping[str, str]) -> Trace | None:
        """Return the trace of a request that is to be traced, None for another. Field names are in lower case."""

    def end(self, trace: Trace, method: str, route: str, status: int | None, ended_ns: int) -> None:
        """Take a request that was answered; `status` None: the client left before."""

    async def close(self) -> None:
        """Send what is left, within a few seconds."""


# The trace of the request that this code runs for. While tracing is on it is set for every request, to None for others.
CURRENT: Final[ContextVar[Trace | None]] = ContextVar("trace", default=None)


def current() -> Trace | None:
    """Return the trace that this code runs for, None without one or after its end."""
    trace = CURRENT.get()
    return None if trace is None or trace.closed else trace
