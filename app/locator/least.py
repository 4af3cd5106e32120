"""Least connections, at a cost that hardly depends on the number of candidates.

Candidates stand in queues, one for each score (calls in flight for its weight, the next one included), and a heap holds
the scores that occur: a few, for there are few weights and few counts. Every change of calls in flight is noted in a log
that all queues of a service share; a queue reads it from where it stopped. Each candidate has one place that counts;
older ones are dropped when they come up. Ties go to the candidate whose count has been the same for longest, which is
round robin while all are idle.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from app.locator.candidates import Candidates
    from app.locator.load import Load

LOG_SLACK: Final = 1_024  # changes that a log holds beyond four for each instance
REFUSALS_MAX: Final = 16  # candidates that are passed over for one pick because they may not take a call
_TAKEN: Final = -1.0  # the score of a candidate that has no place until the log brings it back


class ChangeLog:
    """Which loads have changed, in order. Given up when it is long: queues that read it are then built anew."""

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
    """The candidates of one filter by calls in flight for their weight."""

    __slots__ = ("_heap", "_indexes", "_latest", "_loads", "_queues", "_read", "_shares", "log")

    def __init__(self, candidates: Candidates, log: ChangeLog, draw: Callable[[], float]) -> None:
        """Queue all candidates. `draw` gives [0, 1): ties are in random order at first."""
        self.log: Final = log
        self._read = len(log.changes)
        self._loads = loads = candidates.loads
        self._indexes = {load: index for index, load in enumerate(loads)}
        self._shares = [1.0 / load.instance.weight for load in loads]
        self._latest = [_TAKEN] * len(loads)
        self._queues: dict[float, deque[int]] = {}
        self._heap: list[float] = []
        first = int(draw() * len(loads))
        self._place(loads[first:] + loads[:first])

    def take(self, candidates: Candidates, now_s: float, client: str) -> Load | None:
        """Return the load with the fewest calls in flight for its weight, for one more call.

        Those that may not take a call are passed over, REFUSALS_MAX at most; None when no other is left.
        """
        changes = self.log.changes
        self._place(changes[self._read :])
        self._read = len(changes)
        heap, loads, latest = self._heap, self._loads, self._latest
        refused: list[Load] = []
        found: Load | None = None
        while heap and found is None and len(refused) < REFUSALS_MAX:
            score = heap[0]
            queue = self._queues[score]
            while queue:
                index = queue.popleft()
                if latest[index] != score:
                    continue
                latest[index] = _TAKEN
                load = loads[index]
                if load.look_until_s <= now_s or candidates.admits(load, now_s, client):
                    found = load
                    break
                refused.append(load)
                if len(refused) >= REFUSALS_MAX:
                    break
            else:
                del self._queues[heappop(heap)]
        if refused:
            self._place(refused)
        return found

    def _place(self, changed: Iterable[Load]) -> None:
        """Let candidates stand where their counts belong, last among their equals."""
        indexes, shares, latest, queues = self._indexes, self._shares, self._latest, self._queues
        for load in changed:
            index = indexes.get(load)
            if index is None:
                continue
            score = (load.in_flight + 1) * shares[index]
            if latest[index] == score:
                continue
            latest[index] = score
            queue = queues.get(score)
            if queue is None:
                queues[score] = deque((index,))
                heappush(self._heap, score)
            else:
                queue.append(index)
