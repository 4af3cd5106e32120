"""Ledgers to back up, directories for the backups, and the sql directory of a release that has more migrations."""

from __future__ import annotations

import io
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.backup.create import create_backup
from app.backup.directory import Backup, BackupDirectory
from app.backup.journal import Journal
from app.db import migrations
from app.db.migrate import apply, prepare, turn
from app.db.migrations import read_migrations
from app.db.resources import resource_dir
from tests.audit.chain import make_chain, ten_operations
from tests.backup.migrator import OLD_VERSION
from tests.stores import PrivatePostgres, run_apart

TRANSACTIONAL = "-- More.\n-- service: credits\n-- migrate: compatible\nALTER TABLE credit_accounts ADD COLUMN more text;\n"
CONCURRENT = (
    "-- An index.\n-- service: credits\n-- migrate: compatible, no-transaction\n"
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS credit_accounts_more ON credit_accounts (version);\n"
)
_templates: dict[str, str] = {}


@pytest.fixture
def backups(tmp_path: Path) -> BackupDirectory:
    """An empty directory of backups."""
    directory = BackupDirectory(tmp_path / "backups")
    directory.prepare()
    return directory


@pytest.fixture
def journal(backups: BackupDirectory) -> Journal:
    """A journal that says nothing on the console."""
    return Journal(backups.path, "test", stream=io.StringIO())


async def template_of(postgres: PrivatePostgres, name: str, last_version: int) -> str:
    """Return the name of a database at this version, with ten operations in its ledger; made at the first call."""
    if name not in _templates:
        connection = await asyncpg.connect(await postgres.make_database(name))
        async with turn(connection):
            await prepare(connection)
            for one in read_migrations():
                if one.version <= last_version:
                    await apply(connection, one)
        await make_chain(connection, ten_operations().events)
        await connection.close()
        _templates[name] = name
    return name


@pytest.fixture
def old_url(postgres_server: PrivatePostgres) -> str:
    """URL of a ledger of ten operations at the version of an older release."""

    async def make() -> str:
        template = await template_of(postgres_server, "backup_old", OLD_VERSION)
        own = await postgres_server.make_own_database()
        name = own.partition("?")[0].rpartition("/")[2]
        session = await asyncpg.connect(postgres_server.url("postgres"))
        await session.execute(f'DROP DATABASE "{name}"')
        await session.close()
        return await postgres_server.make_database(name, template)

    return run_apart(make())


@pytest.fixture
async def ledger_url(postgres_server: PrivatePostgres, database_url: str) -> str:
    """URL of a ledger of ten operations at the version of this release."""
    connection = await asyncpg.connect(database_url)
    await make_chain(connection, ten_operations().events)
    await connection.close()
    return database_url


@pytest.fixture
async def session(ledger_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A session on it, as its owner."""
    connection = await asyncpg.connect(ledger_url)
    yield connection
    await connection.close()


@pytest.fixture
async def backup(ledger_url: str, backups: BackupDirectory, journal: Journal) -> Backup:
    """A backup of that ledger."""
    with backups.hold():
        return await create_backup(ledger_url, backups, "manual", journal)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The migrations of a release with two more of them, in a directory that a test may change."""
    shutil.copytree(resource_dir("sql"), tmp_path / "sql")
    files = tmp_path / "sql" / "migrations"
    (files / "9001_more.up.sql").write_text(TRANSACTIONAL)
    (files / "9001_more.down.sql").write_text("-- Less.\nALTER TABLE credit_accounts DROP COLUMN more;\n")
    (files / "9002_index.up.sql").write_text(CONCURRENT)
    (files / "9002_index.down.sql").write_text(
        "-- None.\n-- migrate: no-transaction\nDROP INDEX CONCURRENTLY IF EXISTS credit_accounts_more;\n"
    )
    monkeypatch.setattr(migrations, "resource_dir", lambda kind: tmp_path / kind)
    return files
