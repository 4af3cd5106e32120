"""Latency samples in preallocated arrays, and the percentiles read from them."""

import math
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

SAMPLES_MIN: Final = 1024  # samples; a small first array, because most kinds of call never occur in a run
MS_PER_SECOND: Final = 1000.0


class Latency(msgspec.Struct, frozen=True):
    """Summary of one kind of call; all times in milliseconds, 0 when nothing was recorded."""

    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float


def percentile(ordered: npt.NDArray[np.float64], share: float) -> float:
    """Nearest-rank percentile: the smallest sample that at least `share` of all samples do not exceed.

    ordered  one-dimensional, ascending, not empty
    share    0 < share <= 1, for example 0.99
    returns  a value that was measured, never an interpolated one
    faults   ValueError when `ordered` is empty or `share` is out of range
    source   nearest-rank definition (Hyndman and Fan 1996, definition 1: inverse of the empirical CDF)
    """
    if ordered.size == 0:
        raise ValueError("no samples")
    if not 0.0 < share <= 1.0:
        raise ValueError("share must be above 0 and at most 1")
    rank = math.ceil(share * ordered.size)
    return float(ordered[rank - 1])


class Samples:
    """Append-only array of durations in seconds that doubles when full."""

    __slots__ = ("_count", "_seconds")

    def __init__(self, capacity: int = SAMPLES_MIN) -> None:
        """Preallocate room for `capacity` samples, so that recording allocates nothing."""
        self._seconds: npt.NDArray[np.float64] = np.zeros(max(capacity, SAMPLES_MIN), dtype=np.float64)
        self._count = 0

    def __len__(self) -> int:
        """Return the number of samples recorded."""
        return self._count

    def record(self, seconds: float) -> None:
        """Append one duration."""
        count = self._count
        if count == self._seconds.size:
            self._seconds = np.concatenate([self._seconds, np.zeros_like(self._seconds)])
        self._seconds[count] = seconds
        self._count = count + 1

    def summary(self) -> Latency:
        """Sort what was recorded and read the percentiles; zeros when there is nothing."""
        if self._count == 0:
            return Latency(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        ordered = np.sort(self._seconds[: self._count]) * MS_PER_SECOND
        return Latency(
            count=self._count,
            mean_ms=float(ordered.mean()),
            p50_ms=percentile(ordered, 0.50),
            p95_ms=percentile(ordered, 0.95),
            p99_ms=percentile(ordered, 0.99),
            p99_9_ms=percentile(ordered, 0.999),
            max_ms=float(ordered[-1]),
        )
