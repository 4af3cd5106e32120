"""Round robin by weight: earliest deadline first, O(log n); a plain index while all weights are the same."""

from __future__ import annotations

from heapq import heapify, heapreplace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.locator.load import Load


class Turns:
    """Whose turn it is. Starts at random, so that replicas and new snapshots do not favour the same instances."""

    __slots__ = ("_deadlines", "_loads", "_next")

    def __init__(self, loads: Sequence[Load], *, uneven: bool, draw: Callable[[], float]) -> None:
        """`draw` gives [0, 1). An instance of weight w has a deadline every 1/w."""
        self._loads = loads
        size = len(loads)
        first = self._next = int(draw() * size)
        self._deadlines: list[tuple[float, int, float]] = []
        if uneven:
            strides = [1.0 / load.instance.weight for load in loads]
            self._deadlines = [  # the first ones are spread, so that those of equal weight do not come in a row
                (stride * ((index + first) % size + 1) / size, index, stride) for index, stride in enumerate(strides)
            ]
            heapify(self._deadlines)

    def take(self) -> Load:
        """Return the load whose turn it is."""
        if self._deadlines:
            deadline, index, stride = self._deadlines[0]
            heapreplace(self._deadlines, (deadline + stride, index, stride))
            return self._loads[index]
        index = self._next
        self._next = index + 1 if index + 1 < len(self._loads) else 0
        return self._loads[index]
