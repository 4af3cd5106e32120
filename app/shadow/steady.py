"""A clock for durations that are told in Unix time: it starts with the wall clock, and then no longer listens to it."""

from __future__ import annotations

import time

from app.clock import now_ms


class SteadyClock:
    """Unix milliseconds that never jump: setting the machine's clock moves no step of a canary."""

    def __init__(self) -> None:
        """Take the wall clock once."""
        self._offset_ms = now_ms() - time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        """Return the time since the epoch, as this process has counted it."""
        return self._offset_ms + time.monotonic_ns() // 1_000_000
