"""A fresh ledger in a real PostgreSQL for every test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from app.audit.report import Report
from app.audit.verify import verify_ledger
from tests.audit.chain import SEAL, make_chain, ten_operations
from tests.audit.log_house import LogHouse, log_house


@dataclass
class LedgerDatabase:
    """A migrated database with no ledger in it, and a superuser's session that may do anything to it."""

    url: str
    session: asyncpg.Connection[Any]

    async def verify(self, *, known: bool = True, processes: int = 1, range_entries: int = 50_000) -> Report:
        """Run the verifier, with or without the key of the seals."""
        return await verify_ledger(
            self.url, seals={SEAL.key_id: SEAL} if known else {}, progress=lambda _done, _total: None,
            processes=processes, range_entries=range_entries,
        )  # fmt: skip

    async def first_bad(self, *, known: bool = True) -> tuple[int | None, str]:
        """Return seq and reason of the first fault of shard 0, which is the first of the ledger."""
        report = await self.verify(known=known)
        bad = report.shards[0].first_bad
        assert not report.ok
        assert bad is not None
        assert report.first_bad is not None
        assert (report.first_bad.shard, report.first_bad.seq, report.first_bad.reason) == (0, bad.seq, bad.reason)
        return bad.seq, bad.reason

    async def first_bad_of(self, shard: int) -> tuple[int | None, str]:
        """Return seq and reason of the first fault of a shard."""
        bad = (await self.verify()).shards[shard].first_bad
        assert bad is not None
        return bad.seq, bad.reason


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[LedgerDatabase]:
    session = await asyncpg.connect(database_url)
    yield LedgerDatabase(database_url, session)
    await session.close()


@pytest.fixture
async def ledger(database: LedgerDatabase) -> LedgerDatabase:
    """The ledger of ten operations."""
    await make_chain(database.session, ten_operations().events)
    return database


@pytest.fixture
async def house(database: LedgerDatabase, redis_url: str) -> AsyncIterator[LogHouse]:
    """The stores of a log, without a ledger."""
    async with log_house(database, redis_url) as made:
        yield made
