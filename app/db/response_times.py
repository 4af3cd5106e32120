"""How long statements take, and which were slow: text is logged, arguments never, for they may be personal or secret."""

from __future__ import annotations

import logging
from typing import Final

from app.metrics import STORE_BUCKETS_S, Histogram

log = logging.getLogger(__name__)

SLOW_S: Final = 0.1
SLOW_LOGGED_MAX: Final = 20  # slow statements that are logged between two looks; all are counted
TEXT_MAX: Final = 500  # characters of a statement in the log


class ResponseTimes:
    """Counts by bucket: since the start, and since the last look."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.seconds: Final = Histogram(STORE_BUCKETS_S)
        self.slow = 0
        self._seen = list(self.seconds.counts)
        self._logged = 0

    def take(self, text: str, elapsed_s: float) -> None:
        """Count one statement that has ended, whether it succeeded or not."""
        self.seconds.take(elapsed_s)
        if elapsed_s > SLOW_S:
            self.slow += 1
            self._logged += 1
            if self._logged <= SLOW_LOGGED_MAX:
                words = {"ms": round(elapsed_s * 1000, 1), "statement": " ".join(text.split())[:TEXT_MAX]}
                log.warning("slow statement", extra=words)

    def look(self) -> float:
        """Return the 95th percentile since the last look, in seconds: the upper bound of its bucket; 0 for none."""
        new = [count - seen for count, seen in zip(self.seconds.counts, self._seen, strict=True)]
        self._seen = list(self.seconds.counts)
        self._logged = 0
        left = sum(new) * 0.95
        for count, bound_s in zip(new, (*STORE_BUCKETS_S, float("inf")), strict=True):
            left -= count
            if left <= 0 and count:
                return bound_s
        return 0.0
