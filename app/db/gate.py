"""A first-come-first-served gate with a limit that may move: who waits gets in, in order, and nobody overtakes.

asyncpg's own pool hands a returned connection to whoever asks next, so under load some callers wait five times as long
as others (asyncpg issue 1247). Here a place that becomes free goes to the one who has waited longest.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final


class GateTimeout(TimeoutError):
    """No place became free in time. This says nothing about what is behind the gate."""


class Gate:
    """Counts who is inside. One event loop, one thread."""

    __slots__ = ("_queue", "inside", "limit", "timeouts", "wait_s", "waits")

    def __init__(self, limit: int) -> None:
        """`limit` is at least 1."""
        self.limit = limit
        self.inside = 0
        self.waits = 0  # entries that had to wait, since the start
        self.wait_s = 0.0  # for how long in all
        self.timeouts = 0
        self._queue: Final[deque[asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return sum(not future.done() for future in self._queue)

    async def enter(self, timeout_s: float) -> None:
        """Take a place. Raises GateTimeout when none is free within `timeout_s`."""
        if self.inside < self.limit and not self._queue:
            self.inside += 1
            return
        started_s = time.monotonic()
        self.waits += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(future)
        timer = future.get_loop().call_later(timeout_s, _expire, future)
        try:
            await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.leave()  # the place was given in the same moment in which the caller was cancelled
            else:
                self._admit()  # forgets those at the front who wait no more
            if isinstance(error, GateTimeout):
                self.timeouts += 1
            raise
        finally:
            timer.cancel()
            self.wait_s += time.monotonic() - started_s

    def leave(self) -> None:
        """Give the place back: to the one who has waited longest, unless the limit has been lowered."""
        self.inside -= 1
        self._admit()

    def move(self, limit: int) -> None:
        """Set the limit. Those inside stay; a lower limit takes effect as they leave."""
        self.limit = limit
        self._admit()

    def _admit(self) -> None:
        queue = self._queue
        while queue and (queue[0].done() or self.inside < self.limit):
            future = queue.popleft()
            if not future.done():
                self.inside += 1
                future.set_result(None)


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(GateTimeout("no connection became free in time"))
