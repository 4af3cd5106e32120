"""A migrated database with keys in it, and what reaches it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from app.access.store import KeyStore
from app.db.migrate import migrate
from app.db.postgres import open_pool
from app.db.statements import Statements

DEADLINE_S = 20.0
POLL_S = 0.01


async def until(holds: Callable[[], bool], what: str) -> float:
    """Wait until something holds; return how many seconds that took."""
    started_s = time.monotonic()
    while not holds():
        assert time.monotonic() - started_s < DEADLINE_S, f"not in time: {what}"
        await asyncio.sleep(POLL_S)
    return time.monotonic() - started_s


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """The owner's connection to a migrated database of the test's own."""
    connection = await asyncpg.connect(database_url)
    await migrate(connection)
    yield connection
    await connection.close()


@pytest.fixture
async def statements(owner: asyncpg.Connection[Any], database_url: str) -> AsyncIterator[Statements]:
    """Statements of the server's role."""
    pool = await open_pool(database_url, 4)
    yield Statements(pool)
    pool.terminate()


@pytest.fixture
def store(statements: Statements) -> KeyStore:
    return KeyStore(statements)
