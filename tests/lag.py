"""How late this process itself is: what a busy machine adds to every time that a test measures."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

LOOP_TICK_S: Final = 0.002  # uvloop counts in milliseconds: a timer may come that much early


class Lag:
    """The event loop's overshoot, sampled."""

    INTERVAL_S: Final = 0.05

    def __init__(self) -> None:
        """Nothing has been sampled yet."""
        self._samples: deque[tuple[float, float]] = deque(maxlen=2_000)

    async def run(self) -> None:
        """Sample for ever."""
        loop = asyncio.get_running_loop()
        while True:
            before_s = loop.time()
            await asyncio.sleep(self.INTERVAL_S)
            self._samples.append((before_s, loop.time() - before_s - self.INTERVAL_S))

    def since(self, start_s: float) -> float:
        """Return the largest overshoot of the samples that ended after `start_s`."""
        return max((late for at, late in self._samples if at + late + self.INTERVAL_S >= start_s), default=0.0)

    @property
    def largest_s(self) -> float:
        """The largest overshoot so far."""
        return self.since(float("-inf"))
