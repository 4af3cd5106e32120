"""How late the event loop is: a timer that is due four times a second, and by how much it was missed.

Whatever occupies the loop, or keeps the process from its core, delays every caller by as much.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.metrics import Histogram

INTERVAL_S: Final = 0.25  # a look costs about 3 us


class LoopLag:
    """Samples the running loop from `start` to `stop`, without a task of its own."""

    def __init__(
        self, lag: Histogram, *, interval_s: float = INTERVAL_S, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`lag` counts the seconds by which each look was late."""
        self._lag = lag
        self._interval_s = interval_s
        self._clock_s = clock_s
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin."""
        self._due_s = self._clock_s() + self._interval_s
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._look)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._lag.take(max(0.0, self._clock_s() - self._due_s))
        self.start()
