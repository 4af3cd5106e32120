"""Backups: what they hold, how a bad one is found, which of them go."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import stat
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app import __version__
from app.backup.archive import _login, with_database
from app.backup.create import create_backup
from app.backup.directory import Backup, BackupDirectory, BackupRefused, Failure
from app.backup.journal import Journal, read_log
from app.backup.prune import DAY_MS, prune, verify_backup
from app.backup.restore import try_restore
from app.backup.series import READ_INTERVAL_S, BackupSeries
from app.clock import now_ms, time_text
from app.embedded.binaries import find_postgres_programs
from app.embedded.errors import BinaryMissing
from tests.audit.chain import SEAL


def aged(directory: BackupDirectory, backup: Backup, days: float, name: str, *, good: bool = True) -> Backup:
    """Put a copy of a backup into its directory that is some days old, cut off unless it is to be good."""
    at = time_text(now_ms() - round(days * DAY_MS))
    copy = msgspec.structs.replace(backup, id=name, started_at=at, finished_at=at)
    content = directory.archive(backup.id).read_bytes()
    directory.archive(name).write_bytes(content if good else content[:-100])
    directory.write(copy)
    return copy


async def test_a_backup_tells_what_it_holds(
    backup: Backup, backups: BackupDirectory, session: asyncpg.Connection[Any]
) -> None:
    archive = backups.archive(backup.id)
    content = await asyncio.to_thread(archive.read_bytes)
    head = await session.fetchrow("SELECT head_seq, head_hash FROM ledger_shards")
    entries = await session.fetchval("SELECT count(*) FROM audit_entries")

    assert head is not None
    assert (backup.size_bytes, backup.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert content.startswith(b"PGDMP")
    assert [(one.seq, one.hash) for one in backup.heads] == [(head["head_seq"], head["head_hash"].hex())]
    assert sum(count for name, count in backup.rows.items() if name.startswith("public.audit_entries")) == entries > 0
    assert backup.schema_version == await session.fetchval("SELECT max(version) FROM schema_migrations")
    assert (backup.app_version, backup.pg_dump_version) == (__version__, backup.server_version.split(" ")[0])
    assert backups.read("latest") == backups.read(backup.id) == backup
    modes = {
        stat.S_IMODE(path.stat().st_mode) for path in (archive, archive.with_suffix(".json"), backups.path / "log.jsonl")
    }
    assert modes == {0o600}


async def test_a_good_backup_is_read_and_restored_on_trial_and_leaves_no_database(
    backup: Backup, backups: BackupDirectory, journal: Journal, ledger_url: str, session: asyncpg.Connection[Any]
) -> None:
    await verify_backup(backups, backup, journal)
    await try_restore(ledger_url, backup, backups, journal, SEAL)

    assert "chain verified" in [line["text"] for line in read_log(backups.path)]
    assert await session.fetchval(
        "SELECT count(*) FROM pg_database WHERE datname LIKE current_database() || '_restore%'"
    ) == 0  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "flipped", "cut and described as it is"])
async def test_a_damaged_archive_is_found(backup: Backup, backups: BackupDirectory, journal: Journal, damage: str) -> None:
    archive = backups.archive(backup.id)
    content = bytearray(archive.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        del content[-20:]
    archive.write_bytes(content)
    if damage == "cut and described as it is":
        digest = hashlib.sha256(content).hexdigest()
        backup = msgspec.structs.replace(backup, size_bytes=len(content), sha256=digest)

    with pytest.raises(BackupRefused, match=r"Use another backup"):
        await verify_backup(backups, backup, journal)


async def test_old_backups_go_and_the_newest_good_one_never_does(
    backup: Backup, backups: BackupDirectory, journal: Journal
) -> None:
    aged(backups, backup, 40, "old-good")
    aged(backups, backup, 35, "old-newest-good")
    aged(backups, backup, 32, "old-bad", good=False)
    newest_bad = aged(backups, backup, 31, "newest-bad", good=False)
    backups.remove(backup)

    removed = await prune(backups, 30, journal)

    assert removed == ["old-good", "old-bad", newest_bad.id]
    assert [one.id for one in backups.list()] == ["old-newest-good"]
    assert not backups.archive("old-good").exists()


async def test_while_no_backup_is_good_none_goes(backup: Backup, backups: BackupDirectory, journal: Journal) -> None:
    aged(backups, backup, 40, "bad", good=False)
    backups.remove(backup)

    with pytest.raises(BackupRefused, match="none was removed"):
        await prune(backups, 30, journal)

    assert [one.id for one in backups.list()] == ["bad"]


async def test_what_a_killed_writer_left_goes_and_two_do_not_write_at_once(backup: Backup, backups: BackupDirectory) -> None:
    left = [backups.path / name for name in ("shieldx-x.dump.partial", "shieldx-x.dump", f"{backup.id}.json.0123")]
    for path in left:
        path.write_text("half")
    foreign = backups.path / "mine.dump"
    foreign.write_text("somebody else's")

    with backups.hold():
        with pytest.raises(BackupRefused, match="another shieldx command"), backups.hold():
            pass
        kept = [path for path in (*left, foreign, backups.archive(backup.id)) if path.exists()]

    assert kept == [foreign, backups.archive(backup.id)]


async def test_a_failed_attempt_is_noted_until_the_next_good_one(
    backups: BackupDirectory, journal: Journal, ledger_url: str
) -> None:
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await create_backup(with_database(ledger_url, "never_made"), backups, "manual", journal)
    failed = backups.last_failure()
    await create_backup(ledger_url, backups, "manual", journal)

    assert failed is not None
    assert "never_made" in failed.reason
    assert backups.last_failure() is None


async def test_programs_of_another_version_are_refused_by_name() -> None:
    with pytest.raises(BinaryMissing, match=r"PostgreSQL 99.*found: .*\d+\.\d+ in.*postgresql-client-99"):
        await find_postgres_programs(99)


def test_a_password_is_in_the_environment_of_a_program_and_not_on_its_command_line() -> None:
    url, environment = _login("postgresql://me:s%40cret@h:5/d?sslmode=require")
    other, other_environment = _login("postgresql://me@/d?host=/run/x&password=p")

    assert (url, environment["PGPASSWORD"]) == ("postgresql://me@h:5/d?sslmode=require", "s@cret")
    assert (other, other_environment["PGPASSWORD"]) == ("postgresql://me@/d?host=%2Frun%2Fx", "p")
    assert with_database("postgresql://me:x@h/d?host=/a", "b c") == "postgresql://me:x@h/b%20c?host=%2Fa"


def test_a_step_is_on_disk_before_it_begins_and_coloured_only_on_a_terminal(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    seen: list[int] = []
    plain, terminal = io.StringIO(), Terminal()
    journal = Journal(tmp_path, "up", stream=plain, on_step=lambda _: seen.append(len(read_log(tmp_path))))
    journal.step("dump", bytes=5)
    Journal(tmp_path, "up", stream=terminal).done("made")
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(b'{"torn":')

    assert seen == [1]
    assert plain.getvalue() == "up: dump bytes=5\n"
    assert terminal.getvalue() == "\x1b[32mup: made\x1b[0m\n"
    assert [(line["kind"], line["text"]) for line in read_log(tmp_path)] == [("step", "dump"), ("done", "made")]


def test_a_failure_is_noted_although_the_disk_takes_no_text(
    backup: Backup, backups: BackupDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    registry = CollectorRegistry()
    registry.register(BackupSeries(backups))
    monkeypatch.setattr("app.backup.directory.write_whole", full)

    backups.note_failure(Failure(time_text(now_ms()), "no room"))

    assert registry.get_sample_value("shieldx_backup_last_success") == 0
    assert backups.last_failure() == Failure("", "see log.jsonl: there was no room to note the reason here")


async def test_the_metrics_follow_the_directory(backup: Backup, backups: BackupDirectory) -> None:
    now_s = [0.0]
    registry, empty = CollectorRegistry(), CollectorRegistry()
    registry.register(BackupSeries(backups, lambda: now_s[0]))
    empty.register(BackupSeries(BackupDirectory(backups.path / "nothing")))
    now_s[0] = now_ms() / 1000 + 3600
    good = generate_latest(registry).decode()
    backups.note_failure(Failure(time_text(now_ms()), "no room"))
    now_s[0] += READ_INTERVAL_S
    failed = generate_latest(registry).decode()

    assert f"shieldx_backup_size_bytes {float(backup.size_bytes)}" in good
    assert "shieldx_backup_last_success 1.0" in good
    assert registry.get_sample_value("shieldx_backup_age_seconds") == pytest.approx(3630, abs=60)
    assert "shieldx_backup_last_success 0.0" in failed
    assert "shieldx_backup_last_success 0.0" in generate_latest(empty).decode()
    assert "shieldx_backup_age_seconds " not in generate_latest(empty).decode()


def test_a_directory_that_cannot_be_written_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(BackupRefused, match=rf"uid {os.geteuid()}.*SHIELDX_BACKUP_DIR"):
        BackupDirectory(tmp_path / "file" / "backups").prepare()
    with pytest.raises(BackupRefused, match=rf"uid {os.geteuid()} cannot read backups in .*Not a directory"):
        BackupDirectory(tmp_path / "file").read("latest")
