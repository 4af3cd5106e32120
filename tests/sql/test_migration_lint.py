"""Migrations as squawk, a linter of migrations, sees them: what locks a busy table for long does not get in."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.db.migrations import LAST_WITHOUT_HEADER, read_migrations
from app.db.resources import resource_dir

DIRECTORY = resource_dir("sql") / "migrations"
CONFIG = resource_dir("sql") / "squawk.toml"
TIMEOUT_S = 60


def lint(*paths: Path, alone: bool = False, exclude: str = "") -> str:
    """Return what squawk says, nothing when it is content. The runner wraps each file in a transaction with time limits."""
    words = [] if alone else ["--assume-in-transaction"]
    words += [f"--exclude={exclude}"] if exclude else []
    run = subprocess.run(
        [Path(sys.executable).with_name("squawk"), "--config", CONFIG, "--reporter", "gcc", *words, *paths],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert run.returncode in {0, 1}, run.stderr
    return run.stdout if run.returncode else ""


def test_no_migration_locks_what_is_in_use_for_long() -> None:
    inside = [one for one in read_migrations() if one.up.transactional and one.version > LAST_WITHOUT_HEADER]
    outside = [one for one in read_migrations() if not one.up.transactional]

    assert lint(*(DIRECTORY / f"{one.title}.up.sql" for one in inside)) == ""
    for one in outside:
        assert lint(DIRECTORY / f"{one.title}.up.sql", alone=True) == ""


def test_the_files_before_the_linter_index_tables_that_the_same_release_made() -> None:
    old = [one for one in read_migrations() if one.version <= LAST_WITHOUT_HEADER]

    said = lint(*(DIRECTORY / f"{one.title}.up.sql" for one in old))

    # Each of these is on a table of the first release, which nobody had in use when they were added.
    assert set(re.findall(r"(\d{4}_\w+)\.up\.sql\S*:? .*?(?:warning|error): ([\w-]+)", said)) == {
        ("0004_keys", "require-concurrent-index-creation"),
        ("0007_lifecycle", "require-concurrent-index-creation"),
    }


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("ALTER TABLE credit_accounts ADD COLUMN x text NOT NULL;", "adding-required-field"),
        ("CREATE INDEX x ON credit_accounts (version);", "require-concurrent-index-creation"),
        ("ALTER TABLE credit_accounts ALTER COLUMN version TYPE int;", "changing-column-type"),
        ("ALTER TABLE credit_accounts RENAME COLUMN version TO v;", "renaming-column"),
        ("ALTER TABLE credit_accounts ADD CONSTRAINT c CHECK (version > 0);", "constraint-missing-not-valid"),
        ("DROP TABLE credit_accounts;", "ban-drop-table"),
        ("COMMIT;", "transaction-nesting"),
    ],
)
def test_the_rules_that_stay_find_what_they_are_for(tmp_path: Path, statement: str, rule: str) -> None:
    path = tmp_path / "0099_bad.up.sql"
    path.write_text(f"-- Bad.\n-- service: credits\n{statement}\n")

    assert rule in lint(path)
