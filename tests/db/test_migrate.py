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
from app.db.migrate import MIGRATION_LOCK, MigrationFailed, Patience, apply, migrate, plan, prepare, turn
from app.db.migrations import MigrationRefused, check_schema, read_applied, read_migrations
from app.db.resources import resource_dir

WITHOUT_SERVICES = 11  # migrations that were applied before the table had services
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


async def test_a_table_of_an_older_release_is_taken_over_with_what_it_says(empty: asyncpg.Connection[Any]) -> None:
    async with turn(empty):
        await prepare(empty)
        for one in read_migrations():
            if one.version <= WITHOUT_SERVICES:
                await apply(empty, one)
    before = {row.version: row[:5] for row in (await read_applied(empty)).values()}
    await empty.execute(
        "ALTER TABLE schema_migrations DROP CONSTRAINT schema_migrations_pkey, ADD PRIMARY KEY (version), "
        "DROP COLUMN service, DROP COLUMN duration_ms, DROP COLUMN app_version, DROP COLUMN compatible"
    )
    read_as_it_was = {row.version: row[:5] for row in (await read_applied(empty)).values()}

    assert await migrate(empty) == FILES[WITHOUT_SERVICES:]

    after = {row.version: row[:5] for row in (await read_applied(empty)).values() if row.version in before}
    assert after == read_as_it_was == before
    assert {row[2] for row in before.values()} == {"credits", "shadow"}
    key = await empty.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'schema_migrations_pkey'"
    )
    assert key == "PRIMARY KEY (service, version)"


async def test_services_are_migrated_apart_and_credits_always(empty: asyncpg.Connection[Any]) -> None:
    await migrate(empty, ("locator",))
    only_credits = {row.service for row in (await read_applied(empty)).values()}

    await check_schema(empty, ("credits", "locator"))
    with pytest.raises(MigrationRefused, match=r"needs 0010_experiments.*Run `shieldx migrate up`"):
        await check_schema(empty, ("shadow",))
    await migrate(empty, ("shadow",))

    assert only_credits == {"credits"}
    await check_schema(empty)


async def test_a_server_goes_on_beside_what_a_newer_release_marked_as_compatible(
    empty: asyncpg.Connection[Any], files: Path
) -> None:
    late = files / "9999_late.up.sql"
    late.write_text("-- service: credits\n-- migrate: compatible\nCREATE TABLE late (x int);\n")
    await migrate(empty)
    late.unlink()

    beside = [row.title for row in await check_schema(empty)]
    await empty.execute("UPDATE schema_migrations SET compatible = false, app_version = '7.0.0' WHERE version = 9999")
    with pytest.raises(MigrationRefused, match=r"ahead of shieldx .* 9999_late \(shieldx 7\.0\.0\).*migrate down"):
        await check_schema(empty)

    assert beside == ["9999_late"]


async def test_a_dry_run_runs_everything_tells_the_locks_and_leaves_nothing(
    empty: asyncpg.Connection[Any], files: Path
) -> None:
    await migrate(empty)
    (files / "9998_more.up.sql").write_text("-- service: credits\nALTER TABLE credit_accounts ADD COLUMN more text;\n")
    (files / "9999_index.up.sql").write_text(
        "-- service: shadow\n-- migrate: no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS i ON rules (name);\n"
    )

    planned = await plan(empty)

    assert [(one.title, one.service, one.ran) for one in planned] == [
        ("9998_more", "credits", True), ("9999_index", "shadow", False),
    ]  # fmt: skip
    assert planned[0].locks == ("credit_accounts (AccessExclusiveLock)",)
    assert 9998 not in await read_applied(empty)
    assert not await empty.fetchval("SELECT count(*) FROM pg_attribute WHERE attname = 'more' AND attnum > 0")
    (files / "9998_more.up.sql").write_text("-- service: credits\nSELECT 1 / 0;\n")
    with pytest.raises(MigrationFailed, match=r"9998_more\.up\.sql would fail: DivisionByZeroError"):
        await plan(empty)


async def test_a_runner_that_waits_in_vain_names_who_is_at_work(empty: asyncpg.Connection[Any], empty_url: str) -> None:
    other = await asyncpg.connect(empty_url)
    async with turn(other):
        with pytest.raises(MigrationRefused, match=rf"session {other.get_server_pid()} .*pg_terminate_backend"):
            await migrate(empty, patience=Patience(turn_s=0.0))
    await other.close()

    assert await migrate(empty) == FILES


async def test_a_session_that_lost_its_lock_changes_nothing(empty: asyncpg.Connection[Any]) -> None:
    first = read_migrations()[0]
    await prepare(empty)

    with pytest.raises(MigrationFailed, match="pooler"):
        await apply(empty, first)

    assert await read_applied(empty) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SELECT 1;", "-- service: NAME"),
        ("-- service: money\nSELECT 1;", "-- service: NAME"),
        ("-- service: credits\n-- migrate: quickly\nSELECT 1;", "it may say compatible, no-transaction"),
        ("-- service: credits\n-- migrate: no-transaction\nDROP TABLE a;", "one statement only"),
        ("-- service: credits\n-- migrate: no-transaction\nVACUUM a; VACUUM b;", "one statement only"),
        ("-- service: credits\n-- migrate: no-transaction\nCREATE INDEX CONCURRENTLY i ON a (b);", "run again"),
    ],
)
def test_a_file_that_says_nothing_sound_of_itself_is_refused_by_name(files: Path, text: str, reason: str) -> None:
    (files / "9999_late.up.sql").write_text(text)

    with pytest.raises(MigrationRefused, match=f"9999_late.up.sql.*{re.escape(reason)}"):
        read_migrations()


def test_a_number_belongs_to_one_file(files: Path) -> None:
    (files / "0012_other.up.sql").write_text("-- service: credits\nSELECT 1;")

    with pytest.raises(MigrationRefused, match="has this number too"):
        read_migrations()


async def test_a_unique_index_that_cannot_be_is_no_invalid_one_afterwards(
    empty: asyncpg.Connection[Any], files: Path
) -> None:
    await migrate(empty)
    await empty.execute("CREATE TABLE twice AS SELECT 1 AS x FROM generate_series(1, 2)")
    (files / "9999_late.up.sql").write_text(
        "-- service: credits\n-- migrate: no-transaction\n"
        "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS twice_x ON twice (x);\n"
    )

    with pytest.raises(MigrationFailed, match="UniqueViolation"):
        await migrate(empty)
    left = await empty.fetchval("SELECT to_regclass('twice_x')")
    await empty.execute("DELETE FROM twice WHERE ctid = (SELECT min(ctid) FROM twice)")

    assert left is None
    assert await migrate(empty) == ["9999_late.up.sql"]


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
