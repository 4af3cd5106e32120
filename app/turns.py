"""Work in slices: a little of it in every turn of the event loop, so that nobody waits for the whole heap.

A turn of the loop runs everything that is ready before it looks at the sockets again. A hundred answers in one turn are
five milliseconds in which the replies of Redis and Postgres lie unread and both stand idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

CANCEL_AGAIN_S: Final = 0.2  # a task that heeds its cancellation ends in a few milliseconds
SLICE: Final = 16  # pieces of work in one turn: about 0.8 ms of requests or answers


_tasks: Final[set[asyncio.Task[None]]] = set()  # the event loop itself refers to tasks only weakly


def answer_from_task(work: Coroutine[Any, Any, T], reply: Callable[[T | None, Exception | None], None]) -> None:
    """Run `work` in a task of its own; `reply` gets what it returns and None, or None and what it raised."""

    async def run() -> None:
        try:
            value = await work
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for it
            reply(None, error)
        else:
            reply(value, None)

    task = asyncio.get_running_loop().create_task(run())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended. What it ended with is dropped.

    It is cancelled again while it goes on: what it awaited may have turned the cancellation into an error of a connection,
    which a loop that outlives outages takes for one.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_S)
    if not task.cancelled():
        task.exception()


async def pause(event: asyncio.Event, seconds: float) -> bool:
    """Wait until an event is set, but no longer than this; return whether it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class Pace:
    """Lets work that goes on and on take no more than a share of the event loop's time."""

    def __init__(self, share: float, slice_s: float) -> None:
        """The work begins now; after `slice_s` of it others have their turn, until it has taken no more than its share."""
        self._share = share
        self._slice_s = slice_s
        self._started_s = time.perf_counter()

    async def keep(self) -> None:
        """Return at once while the slice lasts, else after a rest. To be called between two pieces of the work."""
        busy_s = time.perf_counter() - self._started_s
        if busy_s >= self._slice_s:
            await asyncio.sleep(busy_s * (1 / self._share - 1))
            self._started_s = time.perf_counter()


class Line:
    """A line for pieces of work that are coroutines: at each turn of the event loop one goes on, in the order of arrival."""

    def __init__(self) -> None:
        """Begin empty; the loop is the one that runs when somebody waits."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._running = False

    async def wait(self) -> None:
        """Return when it is the caller's turn. Whoever is cancelled leaves the line."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        if not self._running:
            self._running = True
            loop.call_soon(self._run)
        await turn

    def _run(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        self._running = bool(self._waiting)
        if self._running:
            asyncio.get_running_loop().call_soon(self._run)


class Turns:
    """A queue of small pieces of work, run in their order, so many of them per turn of the event loop."""

    def __init__(self, slice_max: int = SLICE) -> None:
        """Begin empty; the loop is the one that runs when work is added."""
        self._slice_max = slice_max
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
        for _ in range(min(self._slice_max, len(self._waiting))):
            work = self._waiting.popleft()
            try:
                work()
            except Exception as error:  # noqa: BLE001 - one bad piece must not keep the others waiting for ever
                loop.call_exception_handler({"message": f"{work!r} failed", "exception": error})
        if self._waiting:
            loop.call_soon(self._run)
        else:
            self._running = False
