"""The commands on the console: what they print, how they end, and what they tell the person to do."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from app.backup.directory import BackupDirectory
from app.backup.upgrade import migrate_embedded
from app.cli import main
from app.db.migrations import read_migrations
from app.settings import SERVICES
from tests.backup.migrator import OLD_VERSION
from tests.server import ROOT_KEY
from tests.stores import PrivatePostgres

OURS = ("SHIELDX_", "REDIS_URL", "DATABASE_URL")


class Console:
    """Runs commands in this process as somebody would who has set DATABASE_URL."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *words: str) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        self._capsys.readouterr()
        code = main(words)
        shown = self._capsys.readouterr()
        return code, shown.out, shown.err


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old_url: str) -> Console:
    for name in os.environ:
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", old_url)
    monkeypatch.setenv("SHIELDX_MIGRATE_DATABASE_URL", old_url)
    monkeypatch.setenv("SHIELDX_ROOT_KEY", ROOT_KEY)
    monkeypatch.setenv("SHIELDX_BACKUP_DIR", str(tmp_path / "backups"))
    return Console(capsys)


@pytest.fixture(autouse=True)
def _redis_url(monkeypatch: pytest.MonkeyPatch, redis_url: str, console: Console) -> None:
    """Both URLs are set, as the settings want."""
    monkeypatch.setenv("REDIS_URL", redis_url)


def test_from_status_over_a_trial_to_up_and_down(console: Console, newer: Path) -> None:
    pending = [one.title for one in read_migrations() if one.version > OLD_VERSION]

    behind, listed, _ = console.run("migrate", "status", "--json")
    tried, planned, _ = console.run("migrate", "plan")
    done, said, steps = console.run("migrate", "up")
    level, table, _ = console.run("migrate", "status")
    asked, _, warned = console.run("migrate", "down", "--to", "9000")
    back, said_back, _ = console.run("migrate", "down", "--to", "9000", "--yes", "--no-backup")

    assert (behind, tried, done, level, asked, back) == (3, 0, 0, 0, 2, 0)
    assert [row["migration"] for row in json.loads(listed) if row["state"] == "pending"] == pending
    assert "credit_accounts (AccessExclusiveLock)" in planned
    assert re.search(r"9002_index +credits +True +not tried", planned)
    assert said == f"{len(pending)} migrations applied\n"
    assert "migrate up: dump backup=shieldx-" in steps
    assert "pending" not in table
    assert "--yes" in warned
    assert said_back == "2 migrations taken back\n"


def test_a_failed_migration_ends_with_1_and_says_what_is_left(console: Console, newer: Path) -> None:
    (newer / "0012_serving.up.sql").write_text("-- Bad.\n-- service: credits\nSELECT 1 / 0;\n")

    code, out, err = console.run("migrate", "up")

    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("shieldx: 0012_serving.up.sql: DivisionByZeroError")
    assert err.splitlines()[-1].endswith("Nothing was changed")


def test_a_changed_file_is_shown_and_refused(console: Console, newer: Path) -> None:
    path = newer / "0011_rules.up.sql"
    path.write_text(path.read_text() + "-- more\n")

    code, out, err = console.run("migrate", "status")

    assert code == 2
    assert re.search(r"0011_rules +shadow +changed", out)
    assert "Put the file back" in err


def test_a_backup_is_made_listed_verified_pruned_and_restored(console: Console, backups: BackupDirectory) -> None:
    made, name, _ = console.run("backup", "create")
    listed, table, _ = console.run("backup", "list")
    verified, good, _ = console.run("backup", "verify")
    pruned, removed, _ = console.run("backup", "prune", "--keep-days", "1")
    restored, done, _ = console.run("restore", "latest", "--no-redis")
    unknown, _, reason = console.run("restore", "no-such-one")

    assert (made, listed, verified, pruned, restored, unknown) == (0, 0, 0, 0, 0, 2)
    assert name.strip() in table
    assert good.startswith(f"{name.strip()} is good")
    assert removed == "0 backups removed\n"
    assert f"is {name.strip()} now" in done
    assert "shieldx backup list" in reason


def test_a_refused_retention_names_a_flag_that_the_command_takes(console: Console) -> None:
    code, _, said = console.run("backup", "prune", "--keep-days", "0")
    flag = said.removeprefix("shieldx: ").partition(":")[0]

    assert (code, flag) == (2, "--backup-keep-days")
    assert console.run("backup", "prune", flag, "30")[0] == 0


def test_a_restore_without_redis_or_key_says_what_to_set(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    console.run("backup", "create")
    monkeypatch.delenv("SHIELDX_ROOT_KEY")
    no_key = console.run("restore", "latest")
    monkeypatch.delenv("REDIS_URL")
    no_redis = console.run("restore", "latest")

    assert (no_key[0], no_redis[0]) == (2, 2)
    assert "SHIELDX_AUDIT_KEY or SHIELDX_ROOT_KEY" in no_key[2]
    assert "REDIS_URL" in no_redis[2]


def test_one_url_of_postgres_is_enough_for_all_but_serving(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.delenv("SHIELDX_MIGRATE_DATABASE_URL")

    code, _, _ = console.run("migrate", "status")

    assert code == 3


@pytest.mark.parametrize("words", [("migrate", "status"), ("backup", "create"), ("backup", "verify", "--restore")])
def test_without_a_database_the_refusal_says_what_to_set(
    console: Console, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    console.run("backup", "create") if "verify" in words else None
    for name in ("DATABASE_URL", "REDIS_URL", "SHIELDX_MIGRATE_DATABASE_URL"):
        monkeypatch.delenv(name)

    code, _, err = console.run(*words)

    assert code == 2
    assert "Set DATABASE_URL" in err
    assert not Path(".shieldx").exists()


def test_a_database_out_of_reach_is_named_without_its_password(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIELDX_MIGRATE_DATABASE_URL", "postgresql://me:hunter2@/x?host=/nonexistent")

    code, out, err = console.run("migrate", "up")

    assert (code, out) == (2, "")
    assert "Is DATABASE_URL right" in err
    assert "hunter2" not in err


async def test_an_embedded_start_makes_a_backup_only_where_there_is_something_to_lose(
    old_url: str, postgres_server: PrivatePostgres, tmp_path: Path
) -> None:
    empty = await postgres_server.make_own_database()

    fresh = await migrate_embedded(empty, tmp_path / "fresh", 30, SERVICES)
    upgraded = await migrate_embedded(old_url, tmp_path / "upgraded", 30, SERVICES)
    again = await migrate_embedded(old_url, tmp_path / "upgraded", 30, SERVICES)

    assert len(fresh) == len(read_migrations())
    assert not (tmp_path / "fresh").exists()
    assert upgraded == [one.title for one in read_migrations() if one.version > OLD_VERSION]
    assert again == []
    assert len(BackupDirectory(tmp_path / "upgraded").list()) == 1
