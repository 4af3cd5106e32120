"""Work in slices: a little of it in every turn of the event loop, so that nobody waits for the whole heap.

A turn of the loop runs everything that is ready before it looks at the sockets again. A hundred answers in one turn are
five milliseconds in which the replies of Redis and Postgres lie unread and both stand idle.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SLICE: Final = 16  # pieces of work in one turn: about 0.8 ms of requests or answers


class Turns:
    """A queue of small pieces of work, run in their order, SLICE of them per turn of the event loop."""

    def __init__(self) -> None:
        """Begin empty; the loop is the one that runs when work is added."""
        self._waiting: deque[Callable[[], None]] = deque()
        self._running = False

    def add(self, work: Callable[[], None]) -> None:
        """Have `work` called in one of the next turns. What it raises goes to the loop's exception hook."""
        self._waiting.append(work)
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(min(SLICE, len(self._waiting))):
            work = self._waiting.popleft()
            try:
                work()
            except Exception as error:  # noqa: BLE001 - one bad piece must not keep the others waiting for ever
                loop.call_exception_handler({"message": f"{work!r} failed", "exception": error})
        if self._waiting:
            loop.call_soon(self._run)
        else:
            self._running = False
