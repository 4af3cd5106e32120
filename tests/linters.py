"""Linters of Kubernetes and containers, which `make test` installs apart from everything else: .venv/linters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.server import REPOSITORY

LINTERS: Final = REPOSITORY / ".venv" / "linters"
TIMEOUT_S: Final = 240


def linter(name: str) -> Path:
    """Return a program of the linters' directory. AssertionError, saying what makes it, where it is missing."""
    path = LINTERS / "bin" / name
    assert path.is_file(), f"{path} is missing: `make .venv/.linters`, or `make test`, installs it"
    return path


def run_linters(program: Path, *arguments: str, given: str = "") -> str:
    """Run a Python program that imports the linters, which must not meet what the tests import; return what it printed."""
    run = subprocess.run(
        [sys.executable, program, *arguments], input=given, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False, cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(LINTERS), "PYTHONWARNINGS": "ignore", "LOG_LEVEL": "ERROR"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout
