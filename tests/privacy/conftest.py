"""A migrated ledger of the test's own, a pool of the server's role in it, and stores with a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from app.audit.entry import genesis_hash
from app.db.founding import found_ledger
from app.db.migrate import migrate
from app.db.postgres import open_pool
from app.privacy.envelope import MasterKeys
from app.privacy.store import PrivateStore
from tests.credits.ledger_house import LedgerHouse, house_of
from tests.stores import run_apart

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
NOW_MS = 1_780_000_000_000


class Clock:
    """Unix milliseconds that move only when a test says so."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


class Facts:
    """What was put on the record."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.fault: Exception | None = None

    async def __call__(self, kind: str, details: dict[str, Any]) -> None:
        if self.fault is not None:
            raise self.fault
        self.seen.append((kind, details))


@pytest.fixture(scope="session")
def house(pytestconfig: pytest.Config) -> LedgerHouse:
    return house_of(pytestconfig)


async def founded(house: LedgerHouse) -> str:
    url = await house.postgres.make_own_database()
    connection = await asyncpg.connect(url)
    await migrate(connection)
    await found_ledger(connection, 2, genesis_hash)
    await connection.close()
    return url


@pytest.fixture(scope="session")
def founded_url(house: LedgerHouse) -> str:
    """URL of a founded ledger with two shards, as its owner."""
    return run_apart(founded(house))


@pytest.fixture
async def ledger_url(founded_url: str) -> str:
    """The same, and nothing private is in it yet."""
    connection = await asyncpg.connect(founded_url)
    await connection.execute("TRUNCATE private_records, private_keys, private_erasures, pending_entries, ledger_jobs")
    await connection.close()
    return founded_url


@pytest.fixture
async def owner(ledger_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(ledger_url)
    yield connection
    await connection.close()


@pytest.fixture
async def pool(ledger_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    pool = await open_pool(ledger_url, 4)
    yield pool
    pool.terminate()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
def store(pool: asyncpg.Pool[Any], clock: Clock, facts: Facts) -> PrivateStore:
    return PrivateStore(pool, MasterKeys([OLD]), facts, clock)
