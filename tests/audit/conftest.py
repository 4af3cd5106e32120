"""A real PostgreSQL for the session, and a fresh ledger in it for every test."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from app.audit.report import Report
from app.audit.verify import verify_ledger
from app.db.resources import resource_dir
from tests.audit.chain import SEAL, make_chain, ten_operations
from tests.audit.log_house import LogHouse, log_house
from tests.stores import PrivatePostgres, running_postgres

_numbers = itertools.count()


@dataclass
class LedgerDatabase:
    """A migrated database with no ledger in it, and a superuser's session that may do anything to it."""

    url: str
    session: asyncpg.Connection[Any]

    async def verify(self, *, known: bool = True, processes: int | None = None, range_entries: int = 50_000) -> Report:
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


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
async def database(postgres: PrivatePostgres) -> AsyncIterator[LedgerDatabase]:
    url = await postgres.make_database(f"ledger_{next(_numbers)}")
    session = await asyncpg.connect(url)
    for file in sorted((resource_dir("sql") / "migrations").glob("*.up.sql")):
        await session.execute(file.read_text())
    yield LedgerDatabase(url, session)
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
