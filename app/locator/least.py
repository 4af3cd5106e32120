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
_TICK_BITS: Final = 32
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
        self._latest = [_entry(_score(load), (index + first) % size, index) for index, load in enumerate(loads)]
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
            latest[index] = entry = _entry(busier, self._tick(), index)
            heapreplace(entries, entry)
            found = load
            break
        for entry in refused:
            heappush(entries, entry)
        return found

    def _catch_up(self) -> None:
        changes = self.log.changes
        entries, latest, indexes, tick = self._entries, self._latest, self._indexes, self._tick
        for position in range(self._read, len(changes)):
            load = changes[position]
            index = indexes.get(load)
            if index is not None:
                score = _score(load)
                if latest[index] >> (_TICK_BITS + _INDEX_BITS) != score:
                    latest[index] = entry = _entry(score, tick(), index)
                    heappush(entries, entry)
        self._read = len(changes)


def _score(load: Load) -> int:
    """Return the calls in flight for its weight, with the next one: of idle instances the heavier goes first."""
    return ((load.in_flight + 1) << _WEIGHT_BITS) // load.instance.weight


def _entry(score: int, tick: int, index: int) -> int:
    return (((score << _TICK_BITS) | tick) << _INDEX_BITS) | index
