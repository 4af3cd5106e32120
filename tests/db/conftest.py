"""Databases and Redis links for the tests of the floor below the ledger."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.credits.ledger_house import LedgerHouse

_numbers = itertools.count()


@pytest.fixture
async def empty_url(house: LedgerHouse) -> AsyncIterator[str]:
    """URL of an empty database, as its owner."""
    url = await house.postgres.make_database(f"floor_{next(_numbers)}")
    yield url
    await house.postgres.drop_database(url)


@pytest.fixture
async def empty(empty_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(empty_url)
    yield connection
    await connection.close()
