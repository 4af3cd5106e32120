"""Follows what changes in Postgres: one session that listens, and looks at intervals besides.

A notification may be lost with the session that it was sent to. So whoever reaches Postgres knows of a change within an
interval and one query.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from app.db.postgres import cut_off
from app.db.retry import TRANSIENT, delay_ms
from app.turns import pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

LISTEN_TIMEOUT_S: Final = 0.5  # a new session that takes longer is dead


class Watch:
    """One task that holds a session, and opens another when that is lost. A subclass says what a look is."""

    def __init__(
        self, name: str, channel: str, connect: Callable[[], Awaitable[asyncpg.Connection[Any]]], *, interval_s: float
    ) -> None:
        """`name` says what is followed; `connect` opens a session of the server's role."""
        self._name = name
        self._channel = channel
        self._connect = connect
        self._interval_s = interval_s
        self._stopping = False
        self._failures = 0  # sessions in a row over which nothing could be seen; how long the next one waits
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def look(self, connection: asyncpg.Connection[Any], *, first: bool) -> None:
        """Take over what has changed; `first`: over this session. Bounds its own time, and raises what asyncpg raises."""
        raise AssertionError(f"{type(self).__name__} must define look() over {connection}, first: {first}")

    async def leave(self, connection: asyncpg.Connection[Any]) -> None:
        """Do over the session what is left to do when the watch is stopped; under the same conditions as `look`."""

    def start(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin to watch; an error that it does not know is a crash."""
        self._task = asyncio.create_task(self._run(on_crash), name=f"{self._name} watch")

    async def stop(self) -> None:
        """Finish the look that is going on, and end."""
        self._stopping = True
        self._woken.set()
        if self._task is not None:
            await self._task

    async def _run(self, on_crash: Callable[[BaseException], None]) -> None:
        while not self._stopping:
            try:
                await self._session(await self._connect())
            except (*TRANSIENT, asyncpg.PostgresError) as error:
                log.warning("%s not confirmed", self._name, extra={"reason": f"{type(error).__name__}: {error}"})
                if not self._stopping:
                    self._woken.clear()  # a notification of the lost session must not cut this pause short
                await pause(self._woken, delay_ms(self._failures) / 1000)
                self._failures += 1
            except Exception as error:  # noqa: BLE001 - an unknown fault stops the process, which starts clean
                on_crash(error)
                return

    async def _session(self, connection: asyncpg.Connection[Any]) -> None:
        """Watch over one session until it breaks or the watch is to stop."""
        first = True
        try:
            with cut_off(connection, LISTEN_TIMEOUT_S):
                await connection.add_listener(self._channel, self._wake)
            while not self._stopping:
                self._woken.clear()
                await self.look(connection, first=first)
                first, self._failures = False, 0
                await pause(self._woken, self._interval_s)
            await self.leave(connection)
        finally:
            connection.terminate()

    def _wake(self, *_notification: object) -> None:
        self._woken.set()
