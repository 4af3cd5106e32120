"""A time limit that kills the connection: whatever was under way on it raises an error that passes by itself."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from app.db.postgres import cut_off
from app.db.retry import TRANSIENT


async def go_on_when_killed(connection: asyncpg.Connection) -> None:
    """Do what asyncpg does between two of its awaits."""
    async with asyncio.timeout(5):
        while not connection.is_closed():
            await asyncio.sleep(0.001)
    connection._protocol.bind_execute()


async def test_work_that_waits_on_a_killed_connection_ends_with_an_error_that_passes(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)

    with pytest.raises(TRANSIENT), cut_off(connection, 0.05):
        await connection.fetchval("SELECT pg_sleep(60)")

    assert connection.is_closed()


async def test_work_that_goes_on_with_a_killed_connection_ends_with_an_error_that_passes(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)

    with pytest.raises(ConnectionError, match="no answer within"), cut_off(connection, 0):
        await go_on_when_killed(connection)


async def test_a_mistake_of_ours_is_not_taken_for_a_lost_connection(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)

    with pytest.raises(AttributeError), cut_off(connection, 30):
        connection.no_such_method()

    connection.terminate()
