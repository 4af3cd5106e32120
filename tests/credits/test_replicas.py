"""Replicas know how many they are, and so what share of a rate limit is theirs while Redis is slow."""

from __future__ import annotations

import asyncpg
import pytest

from app.credits.replicas import LIVE_S, Replicas
from app.db.migrate import migrate
from app.db.postgres import open_pool
from app.db.statements import Statements
from tests.credits.ledger_house import LedgerHouse
from tests.stores import run_apart


@pytest.fixture
def database_url(house: LedgerHouse) -> str:
    """An empty database beside those of the session's ledgers."""
    return run_apart(house.postgres.make_own_database())


async def test_each_gets_the_share_of_those_that_live(database_url: str) -> None:
    owner = await asyncpg.connect(database_url)
    await migrate(owner)
    pool = await open_pool(database_url, 4)
    try:
        replicas = [Replicas(Statements(pool), name) for name in ("a", "a", "b")]
        assert replicas[0].share() == 1.0

        for replica in (*replicas, *replicas):
            await replica.beat()
        assert [replica.count for replica in replicas] == [3, 3, 3]
        assert replicas[0].share() == pytest.approx(1 / 3)

        await replicas[1].leave()
        await owner.execute(
            "UPDATE replicas SET seen_at = seen_at - make_interval(secs => $1) WHERE replica LIKE 'b/%'", LIVE_S
        )
        await replicas[0].beat()
        assert replicas[0].count == 1

        pool.terminate()
        with pytest.raises((asyncpg.InterfaceError, OSError)):
            await replicas[0].beat()
        assert replicas[0].count == 1
        await replicas[0].leave()
    finally:
        pool.terminate()
        await owner.close()
