"""Least connections in O(log n): a heap of candidates by calls in flight per weight, corrected as it is read.

Every change of a load in flight is noted in a log that all heaps of a service share. A heap reads the log from where it
stopped, and pushes one entry for each change; an entry whose count is no longer the load's is dropped when it comes up.
Ties go to the candidate whose count has been the same for longest, which is round robin while all are idle.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.locator.load import Load

LOG_SLACK: Final = 1_024  # changes that a log holds beyond four for each instance
_Entry = tuple[float, int, int, int]  # calls in flight per weight, tie-breaker, calls in flight, index


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

    __slots__ = ("_entries", "_indexes", "_loads", "_read", "_tick", "log")

    def __init__(self, loads: Sequence[Load], log: ChangeLog, draw: Callable[[], float]) -> None:
        """Build the heap. `draw` gives [0, 1): ties are in random order at first."""
        self.log: Final = log
        self._loads = loads
        self._read = len(log.changes)
        self._indexes = {load: index for index, load in enumerate(loads)}
        size = len(loads)
        first = int(draw() * size)
        self._entries: list[_Entry] = [
            ((load.in_flight + 1) / load.instance.weight, (index + first) % size, load.in_flight, index)
            for index, load in enumerate(loads)
        ]
        heapify(self._entries)
        self._tick = count(size).__next__

    def take(self, refuses: Callable[[Load], bool], tries: int) -> int:
        """Return the index of the candidate with the least calls in flight per weight, of the first `tries` that are
        not refused; -1 when all were.
        """
        self._catch_up()
        entries, loads = self._entries, self._loads
        refused: list[_Entry] = []
        found = -1
        while entries and len(refused) < tries:
            entry = entries[0]
            load = loads[entry[3]]
            if entry[2] != load.in_flight:
                heappop(entries)
                continue
            if refuses(load):
                refused.append(heappop(entries))
                continue
            found = entry[3]
            break
        for entry in refused:
            heappush(entries, entry)
        return found

    def _catch_up(self) -> None:
        changes = self.log.changes
        entries, indexes, tick = self._entries, self._indexes, self._tick
        for position in range(self._read, len(changes)):
            load = changes[position]
            index = indexes.get(load)
            if index is not None:
                heappush(entries, ((load.in_flight + 1) / load.instance.weight, tick(), load.in_flight, index))
        self._read = len(changes)
