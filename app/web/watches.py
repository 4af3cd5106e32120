"""Who waits for changes: one shared wake-up for all that watch the same thing, bounded in number over all things.

A change wakes its watchers after MERGE_S, so that a deployment that changes a hundred instances wakes them a few times
and not a hundred.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from aiohttp import web

from app.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

MERGE_S: Final = 0.02  # below what a person or a proxy notices, above the gap between changes of one deployment
WATCHERS_MAX: Final = 2_000  # of the process: half of the connections that it takes by default
WATCHERS_OF_KEY_MAX: Final = 500

_RETRY_AFTER_S: Final = "5"


class Watches:
    """Who is watching. Used from one event loop."""

    def __init__(self) -> None:
        """Begin without watchers."""
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._due: set[str] = set()
        self._by_key: Counter[str] = Counter()
        self.open = 0
        self.closing = False

    @contextmanager
    def enter(self, key_id: str) -> Iterator[None]:
        """Count a watcher for as long as the context is open. Raises Problem 503 `too_many_watchers`."""
        if self.open >= WATCHERS_MAX or self._by_key[key_id] >= WATCHERS_OF_KEY_MAX:
            raise Problem(
                503, "too_many_watchers", "There are as many watchers as there may be, of this key or of all.",
                headers={"Retry-After": _RETRY_AFTER_S},
            )  # fmt: skip
        self.open += 1
        self._by_key[key_id] += 1
        try:
            yield
        finally:
            self.open -= 1
            self._by_key[key_id] -= 1
            if not self._by_key[key_id]:
                del self._by_key[key_id]

    async def wait(self, name: str, timeout_s: float, departure: asyncio.Future[None] | None = None) -> None:
        """Return once what has this name changes, time is up, the client departs, or the server stops."""
        if self.closing or timeout_s <= 0:
            return
        waiter = self._waiters.get(name)
        if waiter is None:
            waiter = self._waiters[name] = asyncio.get_running_loop().create_future()
        ends = {waiter} if departure is None else {waiter, departure}
        await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    def changed(self, *names: str) -> None:
        """Wake who watches one of these, soon."""
        for name in names:
            if name in self._waiters and name not in self._due:
                self._due.add(name)
                asyncio.get_running_loop().call_later(MERGE_S, self._wake, name)

    def close(self) -> None:
        """Wake everybody for the last time: the server stops."""
        self.closing = True
        for name in list(self._waiters):
            self._wake(name)

    def _wake(self, name: str) -> None:
        self._due.discard(name)
        waiter = self._waiters.pop(name, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


WATCHES: Final = web.AppKey("watches", Watches)
