"""`migrate up`: a backup first; a failure leaves what was there; a death anywhere leaves what the next run goes on from."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.backup.directory import BackupDirectory, BackupRefused
from app.backup.journal import Journal, read_log
from app.backup.upgrade import Order, migrate_down, migrate_up
from app.db.migrate import MigrationFailed, Patience
from app.db.migrations import MigrationRefused, read_applied, read_migrations
from app.settings import SERVICES
from tests.audit.chain import SEAL
from tests.backup import migrator
from tests.backup.migrator import OLD_VERSION

ORDER = Order(SERVICES, keep_days=30, seal=SEAL, patience=Patience(tries=2, delay_s=0.01))
DEADLINE_S = 15.0


async def state_of(url: str) -> tuple[list[int], int, bool | None]:
    """Return the numbers that are applied, the entries of the chain, and whether the index of 9002 is valid."""
    connection = await asyncpg.connect(url)
    try:
        applied = await read_applied(connection)
        entries = await connection.fetchval("SELECT count(*) FROM audit_entries")
        valid = await connection.fetchval(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('credit_accounts_more')"
        )
        return list(applied), entries, valid
    finally:
        await connection.close()


def numbers(titles: list[str]) -> list[int]:
    return [int(title[:4]) for title in titles]


def pending_now() -> list[str]:
    """Return what an older release has not applied."""
    return [one.title for one in read_migrations() if one.version > OLD_VERSION]


def forget(files: Path, number: int) -> None:
    """Make a release one that does not know a migration."""
    for path in files.glob(f"{number}_*"):
        path.unlink()


async def test_a_backup_is_made_before_what_is_missing_is_applied(
    old_url: str, newer: Path, backups: BackupDirectory, journal: Journal
) -> None:
    done = await migrate_up(old_url, backups, ORDER, journal)
    again = await migrate_up(old_url, backups, ORDER, journal)

    assert [one.title for one in done] == pending_now()
    assert again == []
    saved = backups.list()
    assert [(one.schema_version, one.rows["public.schema_migrations"]) for one in saved] == [(OLD_VERSION, OLD_VERSION)]
    assert saved[0].reason == f"before {pending_now()[0]}"
    applied, entries, valid = await state_of(old_url)
    assert (applied[-2:], entries, valid) == ([9001, 9002], saved[0].heads[0].seq + 1, True)
    connection = await asyncpg.connect(old_url)
    row = await connection.fetchrow("SELECT * FROM schema_migrations WHERE version = 9002")
    await connection.close()
    assert row is not None
    assert (row["service"], row["compatible"], row["duration_ms"] >= 0) == ("credits", True, True)


async def test_a_run_that_is_killed_before_any_step_is_finished_by_the_next(
    old_url: str, newer: Path, backups: BackupDirectory
) -> None:
    applied_before, entries, _ = await state_of(old_url)
    expected = numbers(pending_now())
    steps = []

    for step in migrator.kill_at_each_step(migrator.upgrade, backups.path, old_url, str(newer.parent)):
        steps.append(step)
        applied, rows, valid = await state_of(old_url)
        new = [version for version in applied if version not in applied_before]
        assert (new, rows) == (expected[: len(new)], entries), f"killed before {step}"
        assert valid in {None, True}, f"killed before {step}"
        assert all((backups.path / f"{one.id}.dump").stat().st_size == one.size_bytes for one in backups.list())

    assert {"begin", "space", "dump", "count", "check", "keep", "apply", "look"} <= set(steps)
    assert (await state_of(old_url))[0] == [*applied_before, *expected]
    assert list(backups.path.glob("*.partial")) == []


async def test_a_run_that_is_killed_inside_a_concurrent_index_leaves_no_invalid_one_to_the_next(
    old_url: str, newer: Path, backups: BackupDirectory
) -> None:
    blocker = await asyncpg.connect(old_url)
    await blocker.execute("BEGIN; SELECT count(*) FROM credit_accounts; LOCK TABLE credit_accounts IN ROW EXCLUSIVE MODE")
    deadline_s = time.monotonic() + DEADLINE_S
    (newer / "9001_more.up.sql").write_text("-- Nothing.\n-- service: credits\nSELECT 1;\n")

    with migrator.child(migrator.upgrade, backups.path, old_url, str(newer.parent)) as process:
        applied = 0
        while applied < len(pending_now()):
            applied += await asyncio.to_thread(process.next_step) == "apply"
            process.go_on()
        while (await state_of(old_url))[2] is not False:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.02)
        process.kill()
    left_behind = (await state_of(old_url))[2]
    await blocker.execute("ROLLBACK")
    await blocker.close()
    done = await migrate_up(old_url, backups, ORDER, Journal(backups.path, "test", quiet=True))

    assert left_behind is False
    assert [one.title for one in done] == ["9002_index"]
    assert (await state_of(old_url))[2] is True


async def test_the_first_file_that_fails_changes_nothing_and_nothing_is_restored(
    old_url: str, newer: Path, backups: BackupDirectory, journal: Journal
) -> None:
    before = await state_of(old_url)
    (newer / "0012_serving.up.sql").write_text("-- Bad.\n-- service: credits\nCREATE TABLE half (x int); SELECT 1 / 0;\n")

    with pytest.raises(MigrationFailed, match=r"0012_serving.*division by zero.*Nothing was changed"):
        await migrate_up(old_url, backups, ORDER, journal)

    assert await state_of(old_url) == before


async def test_a_later_failure_takes_the_whole_run_back_by_restoring_the_backup(
    old_url: str, newer: Path, backups: BackupDirectory, journal: Journal
) -> None:
    before = await state_of(old_url)
    (newer / "9003_bad.up.sql").write_text("-- Bad.\n-- service: shadow\nSELECT 1 / 0;\n")

    with pytest.raises(MigrationFailed, match=r"9003_bad.*again as it was before this run"):
        await migrate_up(old_url, backups, ORDER, journal)

    assert await state_of(old_url) == before
    steps = [line["text"] for line in read_log(backups.path)]
    assert [step for step in steps if step in {"dump", "restore", "load", "compare", "chain verified", "swap", "restored"}] == [
        "dump", "restore", "load", "compare", "chain verified", "swap", "restored",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["written to", "servers"])
async def test_a_later_failure_keeps_what_went_well_when_a_restore_would_lose_something(
    old_url: str, newer: Path, backups: BackupDirectory, journal: Journal, how: str
) -> None:
    (newer / "9003_bad.up.sql").write_text("-- Bad.\n-- service: credits\nSELECT 1 / 0;\n")
    other: asyncpg.Connection[Any] = await asyncpg.connect(
        old_url, server_settings={"application_name": "shieldx" if how == "servers" else "a person"}
    )
    if how == "written to":
        (newer / "9001_more.up.sql").write_text(
            "-- Writes.\n-- service: credits\nUPDATE ledger_shards SET head_seq = head_seq + 1;\n"
        )

    with pytest.raises(
        MigrationFailed, match=rf"(?s)9003_bad.*9002_index of this run went well and stay.*{how}.*shieldx restore"
    ):
        await migrate_up(old_url, backups, ORDER, journal)

    await other.close()
    assert (await state_of(old_url))[0][-2:] == [9001, 9002]


async def test_a_lock_that_others_hold_is_waited_for_shortly_and_often_then_named(
    old_url: str, newer: Path, backups: BackupDirectory, journal: Journal
) -> None:
    other = await asyncpg.connect(old_url)
    await other.execute("BEGIN; LOCK TABLE credit_accounts IN ACCESS SHARE MODE")
    impatient = ORDER._replace(patience=Patience(lock_timeout_ms=20, tries=3, delay_s=0.01), restore=False)

    with pytest.raises(MigrationFailed, match=r"9001_more.*3 tries.*pg_stat_activity"):
        await migrate_up(old_url, backups, impatient, journal)
    tries = [line["text"] for line in read_log(backups.path) if line["kind"] == "warning" and "try " in line["text"]]
    await other.execute("ROLLBACK")
    await other.close()

    assert len(tries) == 2
    assert [one.title for one in await migrate_up(old_url, backups, impatient, journal)] == ["9001_more", "9002_index"]


async def test_what_was_applied_is_taken_back_in_reverse_after_a_backup(
    old_url: str, newer: Path, backups: BackupDirectory, journal: Journal
) -> None:
    before = await state_of(old_url)
    await migrate_up(old_url, backups, ORDER, journal)

    done = await migrate_down(old_url, backups, ORDER, journal, OLD_VERSION)

    assert [one.title for one in done] == pending_now()[::-1]
    assert await state_of(old_url) == before
    assert [one.schema_version for one in backups.list()] == [OLD_VERSION, 9002]


async def test_while_servers_run_nothing_is_taken_back(old_url: str, backups: BackupDirectory, journal: Journal) -> None:
    before = await state_of(old_url)
    server = await asyncpg.connect(old_url, server_settings={"application_name": "shieldx"})

    with pytest.raises(MigrationRefused, match=r"servers are running .*1 sessions.*stop all of them"):
        await migrate_down(old_url, backups, ORDER, journal, 0)
    await server.close()

    assert await state_of(old_url) == before
    assert backups.list() == []


async def test_an_older_release_takes_back_nothing_below_what_a_newer_one_has_applied(
    old_url: str, newer: Path, backups: BackupDirectory, journal: Journal
) -> None:
    await migrate_up(old_url, backups, ORDER, journal)
    for number in (9001, 9002):
        forget(newer, number)

    with pytest.raises(MigrationRefused, match=r"9001_more, 9002_index.*newer release"):
        await migrate_down(old_url, backups, ORDER, journal, OLD_VERSION)


async def test_without_room_for_the_backup_nothing_is_migrated(
    old_url: str, newer: Path, backups: BackupDirectory, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await state_of(old_url)
    monkeypatch.setattr("app.backup.create.SPACE_RESERVE_BYTES", 1 << 60)

    with pytest.raises(BackupRefused, match=r"MiB free.*backup prune"):
        await migrate_up(old_url, backups, ORDER, journal)

    assert await state_of(old_url) == before
    failure = backups.last_failure()
    assert failure is not None
    assert "MiB free" in failure.reason
