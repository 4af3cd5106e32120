"""Connections to Postgres: all as the server's restricted role, with named limits on every wait."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from app.db.pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

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
    cut = False

    def terminate() -> None:
        nonlocal cut
        cut = True
        connection.terminate()

    timer = asyncio.get_running_loop().call_later(seconds, terminate)
    try:
        yield
    except AttributeError as error:
        # asyncpg takes a killed connection apart at once; work that goes on in the same turn meets its missing parts.
        if not cut:
            raise
        raise ConnectionError(f"no answer within {seconds:g} s, the connection was killed") from error
    finally:
        timer.cancel()


async def open_pool(database_url: str, size: int) -> Pool:
    """Return a pool for reads and short changes. Raises what asyncpg raises when Postgres is away."""
    return await Pool.open(database_url, size, timeout_s=CONNECT_TIMEOUT_S, settings=_SERVER_SETTINGS)


@asynccontextmanager
async def open_transaction(pool: Pool, wait_s: float, work_s: float) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A transaction over a connection of the pool, committed at the end, rolled back when the work raises.

    The connection is dropped when the work takes longer than `work_s` or is cancelled: no answer of a server that is away
    is waited for. Waits at most `wait_s` for a connection.
    """
    async with pool.connection(wait_s) as connection:
        with cut_off(connection, work_s):
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            except Exception:
                await transaction.rollback()
                raise
            except BaseException:
                connection.terminate()
                raise
            await transaction.commit()


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
