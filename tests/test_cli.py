"""The console command: its sub-commands, what they print, and their exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from app import __version__
from app.cli import main
from app.settings import Settings, variable_of

SECRETS = {
    "root_key", "audit_key", "checkpoint_keys", "master_keys", "webhook_key", "webhook_old_key", "redis_url", "database_url",
    "migrate_database_url", "traces_url",
}  # fmt: skip
OURS = ("SHIELDX_", "REDIS_URL", "DATABASE_URL")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours is set, and the working directory is empty."""
    for name in os.environ:
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused with exit code 2, and return its one line."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("shieldx: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"shieldx {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["dance"], ["serve", "--no-such-flag"], ["audit"], ["serve", "extra"]])
def test_a_wrong_command_line_is_refused_with_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert "usage: shieldx" in capsys.readouterr().err


def test_help_of_serve_names_every_flag_and_variable_but_no_secret_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])

    text = capsys.readouterr().out
    words = " ".join(text.split())
    for field in msgspec.structs.fields(Settings):
        flag = f"--{field.name.replace('_', '-')} "
        assert (flag in words) == (field.name not in SECRETS), flag
        if field.name not in SECRETS:
            assert variable_of(field.name) in words.replace("- ", "-")


def test_a_bad_flag_of_serve_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--port: " in refused(["serve", "--port", "65536"], capsys)


def test_a_bad_variable_of_serve_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SHIELDX_LEDGER_SHARDS", "many")

    assert "SHIELDX_LEDGER_SHARDS: " in refused(["serve"], capsys)


def test_a_short_root_key_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHIELDX_ROOT_KEY", "short-one")

    text = refused(["serve"], capsys)

    assert "SHIELDX_ROOT_KEY: " in text
    assert "short-one" not in text


@pytest.mark.parametrize("command", [["key"], ["replay", "hour.csv"]], ids=["key", "replay"])
def test_a_command_that_reads_the_root_key_makes_none(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(command, capsys)

    assert str(Path.cwd() / ".shieldx") in text
    assert not list(Path.cwd().iterdir())


def test_urls_of_servers_that_do_not_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in refused(["urls", "--data-dir", str(tmp_path)], capsys)


def test_verify_without_a_database_could_not_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["audit", "verify", "--data-dir", str(tmp_path)], capsys)


def test_verify_of_a_database_that_is_away_could_not_check(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "app", "audit", "verify", "--database-url", f"postgresql:///x?host={tmp_path}"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip

    assert run.returncode == 2
    assert run.stdout == ""
    assert "could not check: " in run.stderr
    assert "Traceback" not in run.stderr


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).with_name("shieldx")

    run = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)

    assert run.stdout == f"shieldx {__version__}\n"
