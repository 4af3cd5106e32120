"""Least connections in O(log n): a heap of candidates by calls in flight per weight, corrected as it is read.

Every change of calls in flight is noted in a log that all heaps of a service share; a heap reads the log from where it
stopped. Each candidate has one entry that counts; older ones are dropped when they come up. Ties go to the candidate
whose count has been the same for longest, which is round robin while all are idle.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.locator.candidates import Candidates
    from app.locator.load import Load

LOG_SLACK: Final = 1_024  # changes that a log holds beyond four for each instance
REFUSALS_MAX: Final = 16  # candidates that are passed over for one pick because they may not take a call
# An entry is one integer, which compares faster than a tuple: calls in flight per weight, tie-breaker, index.
_INDEX_BITS: Final = 24
_LOW_BITS: Final = _INDEX_BITS + 32
_WEIGHT_BITS: Final = 24  # so many binary places has the quotient of calls and weight
_INDEX_MASK: Final = (1 << _INDEX_BITS) - 1


class ChangeLog:
    """Which loads have changed, in order. Emptied when it is long: heaps that read it are then built anew."""

    __slots__ = ("_max", "changes")

    def __init__(self, size: int) -> None:
        """`size` is the number of instances of the service."""
        self.changes: list[Load] = []
        self._max = 4 * size + LOG_SLACK

    @property
    def is_full(self) -> bool:
        """Whether it is time for another one."""
        return len(self.changes) > self._max


class LeastQueue:
    """The candidates of one filter by calls in flight."""

    __slots__ = ("_entries", "_indexes", "_latest", "_loads", "_read", "_tick", "log")

    def __init__(self, candidates: Candidates, log: ChangeLog, draw: Callable[[], float]) -> None:
        """Build the heap. `draw` gives [0, 1): ties are in random order at first."""
        self.log: Final = log
        self._loads = loads = candidates.loads
        self._read = len(log.changes)
        self._indexes = {load: index for index, load in enumerate(loads)}
        size = len(loads)
        first = int(draw() * size)
        # The score counts the call to come: of idle instances the heavier goes first.
        scores = [((load.in_flight + 1) << _WEIGHT_BITS) // load.instance.weight for load in loads]
        self._latest = [
            (score << _LOW_BITS) | ((index + first) % size << _INDEX_BITS) | index for index, score in enumerate(scores)
        ]
        self._entries = self._latest.copy()
        heapify(self._entries)
        self._tick = count(size).__next__

    def take(self, candidates: Candidates, now_s: float, client: str) -> Load | None:
        """Return the load with the fewest calls in flight for its weight, for one more call.

        Those that may not take a call are passed over, REFUSALS_MAX at most; None when no other is left.
        """
        self._catch_up()
        entries, latest, loads = self._entries, self._latest, self._loads
        refused: list[int] = []
        found: Load | None = None
        while entries and len(refused) < REFUSALS_MAX:
            entry = entries[0]
            index = entry & _INDEX_MASK
            if entry != latest[index]:
                heappop(entries)
                continue
            load = loads[index]
            if load.look_until_s > now_s and not candidates.admits(load, now_s, client):
                refused.append(heappop(entries))
                continue
            busier = ((load.in_flight + 2) << _WEIGHT_BITS) // load.instance.weight
            latest[index] = (busier << _LOW_BITS) | (self._tick() << _INDEX_BITS) | index
            heapreplace(entries, latest[index])
            found = load
            break
        for entry in refused:
            heappush(entries, entry)
        return found

    def _catch_up(self) -> None:
        entries, latest, indexes = self._entries, self._latest, self._indexes
        changes = self.log.changes
        for position in range(self._read, len(changes)):
            load = changes[position]
            index = indexes.get(load)
            if index is not None:
                score = ((load.in_flight + 1) << _WEIGHT_BITS) // load.instance.weight
                if latest[index] >> _LOW_BITS != score:
                    latest[index] = (score << _LOW_BITS) | (self._tick() << _INDEX_BITS) | index
                    heappush(entries, latest[index])
        self._read = len(changes)
