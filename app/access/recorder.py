"""What becomes entries of the chain beside the call that caused it: noted at once, recorded by a task of its own."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from app.turns import end_task, pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Recorder:
    """Takes notes without waiting, and records them one after another. A subclass says what a note is."""

    def __init__(
        self,
        name: str,
        record: Callable[[str, dict[str, Any]], Awaitable[Any]],
        *,
        interval_s: float,
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` is the task's; `record` puts one entry into the chain; `interval_s` lies between two rounds at most."""
        self._name = name
        self._record = record
        self._interval_s = interval_s
        self._elapsed_s = elapsed_s
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to record."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """End; what is left is recorded first, as long as the chain takes it."""
        if self._task is not None:
            await end_task(self._task)
        await self._finish()

    async def _round(self, *, woken: bool) -> None:
        """Record what is due: because something was noted (`woken`), or because the interval is over."""
        raise AssertionError(f"{type(self).__name__} must define _round() for woken: {woken}")

    async def _finish(self) -> None:
        """Record all that is left."""
        raise AssertionError(f"{type(self).__name__} must define _finish()")

    async def _run(self) -> None:
        while True:
            await pause(self._woken, self._interval_s)
            woken = self._woken.is_set()
            self._woken.clear()
            await self._round(woken=woken)
