"""Two releases on one database under load: the schema grows while the older one serves, then both serve, then the newer."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import asyncpg
import pytest

from app.audit.verify import verify_ledger
from app.db.migrations import check_schema
from app.db.postgres import APP_ROLE
from tests.credits.ledger_client import Client, fresh
from tests.credits.ledger_house import Ledger, LedgerHouse
from tests.server import REPOSITORY, ShieldxServer

CLIENTS = 6
BALANCE = 10**6
PAUSE_S = 0.1  # of a client between two spends: the point is that none fails, not how many there are
ENOUGH = 25  # operations that a server must have answered before the next act begins
DEADLINE_S = 120.0
RETRY_S = 0.02
TRANSACTIONAL = """-- A column that the next release fills, on the table that every spend changes.
-- service: credits
-- migrate: compatible
ALTER TABLE credit_accounts ADD COLUMN plan text, ADD COLUMN limits jsonb NOT NULL DEFAULT '{}';
"""
CONCURRENT = """-- An index beside running spends.
-- service: credits
-- migrate: compatible, no-transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS credit_accounts_plan ON credit_accounts (plan) WHERE plan IS NOT NULL;
"""


class Load:
    """Clients that spend on whichever servers stand in `targets`, and repeat what was answered with 503."""

    def __init__(self, session: aiohttp.ClientSession, tenant: str) -> None:
        self.targets: list[ShieldxServer] = []
        self.acknowledged: set[str] = set()
        self.answered: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._session = session
        self._tenant = tenant
        self._turns = itertools.count()
        self._over = False

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

    def end(self) -> None:
        self._over = True

    async def _client(self) -> None:
        while not self._over:
            key = fresh("rolling")
            while not await self._spend(key):
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(PAUSE_S)

    async def _spend(self, key: str) -> bool:
        server = self.targets[next(self._turns) % len(self.targets)]
        body = {"tenant_id": self._tenant, "amount": 1}
        reply = await Client(self._session, server.url).post("/v1/credits/consume", body, key=key)
        if reply.status == 200:
            self.acknowledged.add(reply.body["transaction_id"])
            self.answered[server.name] += 1
        elif reply.status != 503:
            self.wrong.append(f"{server.name}: {reply.status} {reply.body}")
        return reply.status != 503

    async def until_answered_by(self, *servers: ShieldxServer) -> None:
        """Wait until each of these servers has answered ENOUGH more operations."""
        wanted = {server.name: self.answered[server.name] + ENOUGH for server in servers}
        deadline_s = time.monotonic() + DEADLINE_S
        while any(self.answered[name] < count for name, count in wanted.items()):
            assert not self.wrong, self.wrong
            assert time.monotonic() < deadline_s, [server.log_tail for server in servers]
            await asyncio.sleep(RETRY_S)


class Releases(NamedTuple):
    """A ledger, the URL of its restricted role, and servers of each release on it."""

    ledger: Ledger
    restricted_url: str
    older: ShieldxServer
    older_again: ShieldxServer
    newer: ShieldxServer


@pytest.fixture
def next_release(tmp_path: Path) -> Path:
    """A checkout of the release after this one: another version, and a schema that has grown."""
    for part in ("app", "lua", "sql"):
        shutil.copytree(REPOSITORY / part, tmp_path / "next" / part)
    code = tmp_path / "next"
    init = code / "app" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "99.'))
    (code / "sql" / "migrations" / "9001_plan.up.sql").write_text(TRANSACTIONAL)
    (code / "sql" / "migrations" / "9002_plan_index.up.sql").write_text(CONCURRENT)
    return code


@pytest.fixture
async def releases(house: LedgerHouse, next_release: Path, tmp_path: Path) -> AsyncIterator[Releases]:
    ledger = await house.make_ledger()
    await house.postgres.allow_login(APP_ROLE)
    # The newer one logs in as the restricted role: to serve, no right to change the schema is needed.
    restricted = ledger.database_url.replace("postgres@", f"{APP_ROLE}@")
    backups = str(tmp_path / "backups")
    made = Releases(
        ledger, restricted,
        ShieldxServer(tmp_path / "a", *ledger, name="older"),
        ShieldxServer(tmp_path / "a", *ledger, name="older-again"),
        ShieldxServer(tmp_path / "b", ledger.redis_url, restricted, name="newer", code=next_release, backup_dir=backups),
    )  # fmt: skip
    yield made
    for server in (made.older, made.older_again, made.newer):
        server.kill()


async def test_two_releases_serve_one_database_under_load(releases: Releases, session: aiohttp.ClientSession) -> None:
    older, newer = releases.older, releases.newer
    await older.start()
    tenant = await Client(session, older.url).tenant(BALANCE)
    load = Load(session, tenant)
    load.targets = [older]
    spending = asyncio.create_task(load.run())

    # While the older release serves, the newer one's migrations are applied, with a backup before them.
    await load.until_answered_by(older)
    migrated = await asyncio.to_thread(newer.run_command, "migrate", "up", database_url=releases.ledger.database_url)
    await load.until_answered_by(older)
    # Then both serve, and an older one that restarts meets a schema that is ahead of it.
    await newer.start()
    load.targets = [older, newer]
    await load.until_answered_by(older, newer)
    await releases.older_again.start()
    load.targets = [releases.older_again, newer]
    assert await asyncio.to_thread(older.stop) == 0, older.log_tail
    await load.until_answered_by(releases.older_again, newer)
    # Then the newer one alone.
    load.targets = [newer]
    await load.until_answered_by(newer)
    assert await asyncio.to_thread(releases.older_again.stop) == 0, releases.older_again.log_tail
    await load.until_answered_by(newer)
    load.end()
    await spending

    assert migrated.returncode == 0, migrated.stderr
    assert migrated.stdout == "2 migrations applied\n"
    assert load.wrong == []
    log = await asyncio.to_thread(releases.older_again.log.read_text)
    assert "serving beside a newer release" in log
    assert "9002_plan_index" in log
    connection = await asyncpg.connect(releases.ledger.database_url)
    rows = await connection.fetch("SELECT transaction_id FROM audit_entries WHERE type = 'consume'")
    balance = await connection.fetchval("SELECT balance FROM credit_accounts WHERE tenant_id = $1", tenant)
    ahead = [row.title for row in await check_schema(connection)]
    await connection.close()
    assert load.acknowledged == {str(row[0]) for row in rows}
    assert balance == BALANCE - len(load.acknowledged)
    assert ahead == ["9001_plan", "9002_plan_index"]
    assert (await verify_ledger(releases.restricted_url, seals={}, progress=lambda *_: None)).ok
