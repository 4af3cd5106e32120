"""Migrations: each once, in order, together or not at all, and only while the files are what was applied."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.audit.entry import genesis_hash
from app.db import migrations as migrations_module
from app.db.founding import found_ledger
from app.db.migrate import MIGRATION_LOCK, MigrationFailed, migrate
from app.db.migrations import MigrationRefused
from app.db.resources import resource_dir

FILES = sorted(path.name for path in (resource_dir("sql") / "migrations").glob("*.up.sql"))


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the migrations that a test may change."""
    shutil.copytree(resource_dir("sql"), tmp_path / "sql")
    monkeypatch.setattr(migrations_module, "resource_dir", lambda kind: tmp_path / kind)
    return tmp_path / "sql" / "migrations"


async def test_all_are_applied_once(empty: asyncpg.Connection[Any]) -> None:
    first = await migrate(empty)
    second = await migrate(empty)

    assert (first, second) == (FILES, [])
    rows = await empty.fetch("SELECT version, name FROM schema_migrations ORDER BY version")
    assert [f"{row['version']:04d}_{row['name']}.up.sql" for row in rows] == FILES


async def test_runners_that_start_together_take_turns(empty_url: str) -> None:
    async def one() -> list[str]:
        connection = await asyncpg.connect(empty_url)
        try:
            return await migrate(connection)
        finally:
            await connection.close()

    applied = await asyncio.gather(*(one() for _ in range(4)))

    assert sorted(applied) == [[], [], [], FILES]


async def test_the_lock_is_given_back(empty: asyncpg.Connection[Any], empty_url: str) -> None:
    await migrate(empty)

    other = await asyncpg.connect(empty_url)
    assert await other.fetchval("SELECT pg_try_advisory_lock($1)", MIGRATION_LOCK)
    await other.close()


async def test_a_changed_file_is_refused_by_name(empty: asyncpg.Connection[Any], files: Path) -> None:
    await migrate(empty)
    (files / FILES[0]).write_text((files / FILES[0]).read_text() + "-- one more line\n")

    with pytest.raises(MigrationRefused, match=re.escape(FILES[0])):
        await migrate(empty)


async def test_a_wrong_name_is_refused(empty: asyncpg.Connection[Any], files: Path) -> None:
    (files / "3_late.up.sql").write_text("SELECT 1")

    with pytest.raises(MigrationRefused, match="3_late"):
        await migrate(empty)


async def test_a_migration_that_fails_leaves_nothing_and_can_be_mended(empty: asyncpg.Connection[Any], files: Path) -> None:
    late = files / "9999_late.up.sql"
    late.write_text("-- service: credits\nCREATE TABLE half (x int); SELECT 1 / 0")

    with pytest.raises(MigrationFailed, match="DivisionByZero"):
        await migrate(empty)
    left = await empty.fetchval("SELECT to_regclass('half')")
    late.write_text("-- service: credits\nCREATE TABLE half (x int)")

    assert left is None
    assert await migrate(empty) == [late.name]


async def test_every_migration_can_be_taken_back(empty: asyncpg.Connection[Any]) -> None:
    await migrate(empty)
    await empty.execute("DROP TABLE schema_migrations")

    for name in reversed(FILES):
        await empty.execute((resource_dir("sql") / "migrations" / name.replace(".up.", ".down.")).read_text())

    left = await empty.fetch(
        "SELECT relname AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace "
        "UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    )
    assert [row["name"] for row in left] == []
    assert await migrate(empty) == FILES


async def test_the_ledger_is_founded_once(empty: asyncpg.Connection[Any]) -> None:
    await migrate(empty)

    first = await found_ledger(empty, 3, genesis_hash)
    second = await found_ledger(empty, 3, genesis_hash)

    assert first == second
    assert (first.shard_count, len(first.salt), len(first.ledger_id)) == (3, 32, 16)
    rows = await empty.fetch("SELECT shard, head_seq, head_hash, generation, epoch FROM ledger_shards ORDER BY shard")
    assert [tuple(row) for row in rows] == [(n, -1, genesis_hash(f"{first.origin}/s{n:02d}"), 0, 0) for n in range(3)]


async def test_another_number_of_shards_is_refused_and_both_are_named(empty: asyncpg.Connection[Any]) -> None:
    await migrate(empty)
    await found_ledger(empty, 3, genesis_hash)

    with pytest.raises(MigrationRefused, match=r"3 shards.*SHIELDX_LEDGER_SHARDS says 4.*start with 3"):
        await found_ledger(empty, 4, genesis_hash)


async def test_two_ledgers_have_nothing_in_common(house: Any) -> None:
    ledgers = []
    for name in ("one", "other"):
        connection = await asyncpg.connect(await house.postgres.make_database(f"ledger_{name}"))
        await migrate(connection)
        ledgers.append(await found_ledger(connection, 1, genesis_hash))
        await connection.close()

    first, second = ledgers
    assert first.ledger_id != second.ledger_id
    assert first.origin != second.origin
    assert first.salt != second.salt
