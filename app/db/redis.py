"""One connection to Redis that carries money scripts, and never repeats one by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio.connection import AbstractConnection

    from app.db.lua import Script

CONNECT_TIMEOUT_S: Final = 1.0
# A batch takes about 10 ms. Beyond this the server or the network is stuck, and callers are told within 2 s.
ANSWER_TIMEOUT_S: Final = 1.5


def make_pool(redis_url: str) -> ConnectionPool:
    """Return the settings of every Redis connection: no client-side retries, bytes in and out.

    Waits are bounded by whoever sends. The library's own time limit wraps every send in a task, which costs a task
    and, on Python 3.11, can swallow a cancellation.

    redis_url: redis://, rediss:// or unix://. Raises ValueError for anything else.
    """
    return ConnectionPool.from_url(
        redis_url,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=None,
        health_check_interval=0,
        protocol=2,
    )


class RedisLink:
    """One connection, used by one task at a time. After any error it is closed: nothing is sent twice."""

    def __init__(self, pool: ConnectionPool) -> None:
        """The connection is opened by `open`, not here."""
        self._pool = pool
        self._connection: AbstractConnection | None = None

    @property
    def is_open(self) -> bool:
        """Whether a connection stands. It may still turn out to be dead at the next command."""
        return self._connection is not None

    async def open(self) -> str:
        """Connect and return the server's run_id: which incarnation of Redis this is."""
        await self.close()
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
            self._connection = connection
            info: bytes = await self.command("INFO", "server")
        except BaseException:
            self._connection = None
            await connection.disconnect(nowait=True)
            raise
        for line in info.splitlines():
            if line.startswith(b"run_id:"):
                return line[7:].strip().decode()
        raise ConnectionError("INFO server names no run_id")

    async def close(self) -> None:
        """Drop the connection, whatever is in flight on it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def command(self, *words: str | int | bytes) -> Any:
        """Send one command and return its answer. Any error closes the link, except an error reply."""
        connection = self._connection
        if connection is None:
            raise ConnectionError("the link to Redis is closed")
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await connection.send_command(*words)
                return await connection.read_response()
        except ResponseError:
            raise
        except BaseException:
            await self.close()
            raise

    async def evaluate(self, script: Script, keys: Sequence[str], words: Sequence[str | int | bytes]) -> Any:
        """Run a script by its SHA-1; when the server has not seen it, load it first.

        NOSCRIPT is the one error after which sending again is safe: nothing has run.
        """
        try:
            return await self.command("EVALSHA", script.sha, len(keys), *keys, *words)
        except NoScriptError:
            return await self.command("EVAL", script.text, len(keys), *keys, *words)
