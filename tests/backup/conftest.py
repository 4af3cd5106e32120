"""Ledgers to back up, directories for the backups, and the sql directory of a release that has more migrations."""

from __future__ import annotations

import io
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
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
LAST_VERSION = 9999
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


async def copy_of(postgres: PrivatePostgres, name: str, last_version: int) -> str:
    """Return the URL of a database of the caller's own like that template."""
    return await postgres.make_database(f"t_{secrets.token_hex(6)}", await template_of(postgres, name, last_version))


@pytest.fixture
def old_url(postgres_server: PrivatePostgres) -> Iterator[str]:
    """URL of a ledger of ten operations at the version of an older release."""
    url = run_apart(copy_of(postgres_server, "backup_old", OLD_VERSION))
    yield url
    run_apart(postgres_server.drop_database(url))


@pytest.fixture
def ledger_url(postgres_server: PrivatePostgres) -> Iterator[str]:
    """URL of a ledger of ten operations at the version of this release."""
    url = run_apart(copy_of(postgres_server, "backup_ledger", LAST_VERSION))
    yield url
    run_apart(postgres_server.drop_database(url))


@pytest.fixture
async def session(ledger_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A session on it, as its owner."""
    connection = await asyncpg.connect(ledger_url)
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def saved(postgres_server: PrivatePostgres, tmp_path_factory: pytest.TempPathFactory) -> BackupDirectory:
    """A directory with a backup of such a ledger."""

    async def make() -> BackupDirectory:
        directory = BackupDirectory(tmp_path_factory.mktemp("saved"))
        url = await copy_of(postgres_server, "backup_ledger", LAST_VERSION)
        await create_backup(url, directory, "manual", Journal(directory.path, "test", quiet=True))
        return directory

    return run_apart(make())


@pytest.fixture
def backup(saved: BackupDirectory, backups: BackupDirectory) -> Backup:
    """That backup, in the directory of the test."""
    for path in saved.path.iterdir():
        shutil.copy2(path, backups.path)
    return backups.read("latest")


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
