"""Clocks that nobody sets: one for times that people read, one for durations that all replicas agree on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from app.clock import now_ms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def _passed_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class SteadyClock:
    """Unix milliseconds that never jump in this process: what entries and answers say of when something was."""

    def __init__(self) -> None:
        """Take the wall clock once."""
        self._offset_ms = now_ms() - _passed_ms()

    def now_ms(self) -> int:
        """Return the time since the epoch, as this process has counted it."""
        return self._offset_ms + _passed_ms()


class CommonClock:
    """Milliseconds that pass alike on all replicas: how long a stage has held is told by them.

    Each replica counts by its monotonic clock; Redis keeps the latest reading, which a process begins with and behind which
    nobody stays. So a wall clock that is set, of a replica, of Redis or of Postgres, changes no duration, nor does a start.
    It stands still while no replica runs. Only the first reading of all is the wall clock's.
    """

    def __init__(self, keep: Callable[[int | None], Awaitable[int | None]]) -> None:
        """`keep` has the later of a reading and the one that is kept be kept, and returns that; None asks alone."""
        self._keep = keep
        self._offset_ms = now_ms() - _passed_ms()

    def ms(self) -> int:
        """Return the reading of this moment."""
        return self._offset_ms + _passed_ms()

    async def begin(self, least_ms: int) -> None:
        """Begin with what is kept, or with `least_ms`, the latest reading of which there is a record, 0 without one.

        Raises what `keep` raises.
        """
        latest_ms = max(await self._keep(None) or 0, least_ms)
        if latest_ms:
            self._offset_ms = latest_ms - _passed_ms()
        await self.agree()

    async def agree(self) -> None:
        """Tell the others how late it is, and be no earlier than they are. Raises what `keep` raises."""
        latest_ms = await self._keep(self.ms()) or 0
        self._offset_ms += max(0, latest_ms - self.ms())
