"""How long statements take, and which were slow: text is logged, arguments never, for they may be personal or secret."""

from __future__ import annotations

import logging
from bisect import bisect_left
from typing import Final

log = logging.getLogger(__name__)

SLOW_S: Final = 0.1
SLOW_LOGGED_MAX: Final = 20  # slow statements that are logged between two looks; all are counted
TEXT_MAX: Final = 500  # characters of a statement in the log
BOUNDS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class ResponseTimes:
    """Counts by bucket: since the start, and since the last look."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0
        self.slow = 0
        self._seen = list(self.counts)
        self._logged = 0

    def take(self, text: str, elapsed_s: float) -> None:
        """Count one statement that has ended, whether it succeeded or not."""
        self.counts[bisect_left(BOUNDS_S, elapsed_s)] += 1
        self.sum_s += elapsed_s
        if elapsed_s > SLOW_S:
            self.slow += 1
            self._logged += 1
            if self._logged <= SLOW_LOGGED_MAX:
                words = {"ms": round(elapsed_s * 1000, 1), "statement": " ".join(text.split())[:TEXT_MAX]}
                log.warning("slow statement", extra=words)

    def look(self) -> float:
        """Return the 95th percentile since the last look, in seconds: the upper bound of its bucket; 0 for none."""
        new = [count - seen for count, seen in zip(self.counts, self._seen, strict=True)]
        self._seen = list(self.counts)
        self._logged = 0
        left = sum(new) * 0.95
        for count, bound_s in zip(new, (*BOUNDS_S, float("inf")), strict=True):
            left -= count
            if left <= 0 and count:
                return bound_s
        return 0.0
