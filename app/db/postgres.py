"""Connections to Postgres: all as the server's restricted role, with named limits on every wait."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from app.db.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

APP_ROLE: Final = "shieldx_app"  # may append to the chain, never change it
CONNECT_TIMEOUT_S: Final = 2.0
STATEMENT_TIMEOUT_MS: Final = 10_000  # the server gives up on a statement that nobody waits for any more
IDLE_TRANSACTION_TIMEOUT_MS: Final = 10_000  # a paused writer's open transaction does not hold locks for ever

_SERVER_SETTINGS: Final = {
    "role": APP_ROLE,
    "application_name": "shieldx",
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": str(IDLE_TRANSACTION_TIMEOUT_MS),
    "timezone": "UTC",
}
# The writer's statements join a few hundred keys with a large table: always by its index.
_WRITER_SETTINGS: Final = {"enable_hashjoin": "off", "enable_mergejoin": "off", "enable_seqscan": "off", "jit": "off"}


@contextmanager
def cut_off(connection: asyncpg.Connection[Any], seconds: float) -> Iterator[None]:
    """Kill the connection when the work inside takes longer: whatever waits on it then raises a transient error.

    A time limit that cancels is not enough: leaving a transaction or a cursor sends a statement of its own and waits
    for its answer, on a connection that may never answer again.
    """
    timer = asyncio.get_running_loop().call_later(seconds, connection.terminate)
    try:
        yield
    finally:
        timer.cancel()


async def open_pool(database_url: str, size: int) -> Pool:
    """Return a pool for reads and short changes. Raises what asyncpg raises when Postgres is away."""
    return await Pool.open(database_url, size, timeout_s=CONNECT_TIMEOUT_S, settings=_SERVER_SETTINGS)


async def read_rows(pool: Pool, timeout_s: float, sql: str, values: Sequence[Any]) -> list[asyncpg.Record]:
    """Return all rows of one statement over a connection of the pool, which is waited for at most `timeout_s`."""
    return await pool.rows(timeout_s, sql, values)


async def open_session(database_url: str) -> asyncpg.Connection[Any]:
    """Return one connection of a shard's keeper and writer."""
    return await asyncpg.connect(
        database_url, timeout=CONNECT_TIMEOUT_S, server_settings=_SERVER_SETTINGS | _WRITER_SETTINGS
    )


async def open_reader(database_url: str) -> asyncpg.Connection[Any]:
    """Return one connection for reads that share a statement."""
    return await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_S, server_settings=_SERVER_SETTINGS)


async def open_owner(database_url: str) -> asyncpg.Connection[Any]:
    """Return one connection of the role that owns the schema, for migrations."""
    return await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_S, server_settings={"timezone": "UTC"})
