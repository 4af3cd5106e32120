"""A migrated ledger in a real Postgres, as its owner and as the server's role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from app.audit.entry import genesis_hash
from app.db.founding import found_ledger
from app.db.migrate import migrate
from tests.credits.ledger_house import house_of

_urls: dict[str, str] = {}


@pytest.fixture
async def ledger_url(pytestconfig: pytest.Config) -> str:
    """URL of a founded ledger with one shard, shared by the tests of this directory."""
    if "ledger" not in _urls:
        _urls["ledger"] = await house_of(pytestconfig).postgres.make_database("schema")
        connection = await asyncpg.connect(_urls["ledger"])
        await migrate(connection)
        await found_ledger(connection, 1, genesis_hash)
        await connection.close()
    return _urls["ledger"]


@pytest.fixture
async def owner(ledger_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """The owner's connection; what a test does is rolled back."""
    connection = await asyncpg.connect(ledger_url)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


@pytest.fixture
async def server_role(owner: asyncpg.Connection[Any]) -> asyncpg.Connection[Any]:
    """The same connection as the role that the server runs as."""
    await owner.execute("SET LOCAL ROLE shieldx_app")
    return owner
