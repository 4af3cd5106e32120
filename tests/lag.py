"""How late this process itself is: what a busy machine adds to every time that a test measures."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from pathlib import Path
from typing import Final

LOOP_TICK_S: Final = 0.002  # uvloop counts in milliseconds: a timer may come that much early


def starved_s(pid: int) -> float:
    """Return the seconds for which the main thread of a process could have run and got no processor; 0 if nobody counts.

    It is the second number of /proc/PID/schedstat, in nanoseconds.
    """
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def disk_waited_s() -> float:
    """Return the seconds since the machine's start in which some task waited for a disk; 0 if nobody counts.

    A server that writes its log stands still when the disk does, and no number of its own tells.
    """
    with contextlib.suppress(OSError, IndexError):
        return int(Path("/proc/pressure/io").read_text().splitlines()[0].rpartition("total=")[2]) / 1e6
    return 0.0


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
