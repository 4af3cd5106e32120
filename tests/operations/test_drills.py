"""The drills of docs/disaster-recovery.md, run as they are printed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from app.embedded.binaries import find_postgres
from tests.guide import block
from tests.server import REPOSITORY, free_port

ALL: Final = ("functions", "begin", "redis", "postgres", "both", "chain", "key")
# What the tests of recovery and of restores do not play anyway: `make soak` runs all.
SHORT: Final = ("functions", "begin", "postgres", "key")
TIMEOUT_S: Final = 240
SAY: Final = 4_000  # characters of what went wrong


async def test_the_drills_of_the_guide_end_as_they_say(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    drills = ALL if pytestconfig.getoption("--recovery-rounds") > 1 else SHORT
    parts = [block(f"drill-{name}", "disaster-recovery.md") for name in drills]
    script = "\n".join(["set -euo pipefail", "trap 'kill -TERM ${SERVER:-} 2> /dev/null || true' EXIT", *parts])
    programs = [Path(sys.executable).parent, (await find_postgres(None)).directory]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SHIELDX_", "PG"))}
    environment = kept | {
        "DRILL": str(tmp_path / "drill"), "PORT": str(free_port()), "SHADOW_PORT": str(free_port()),
        "PYTHONPATH": str(REPOSITORY), "PATH": ":".join([*map(str, programs), os.environ["PATH"]]),
    }  # fmt: skip
    (tmp_path / "drill").mkdir()

    run = ["bash", "-x", "-c", script]
    done = await asyncio.to_thread(
        subprocess.run, run, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )

    log = tmp_path / "drill.log"
    assert done.returncode == 0, f"{done.stdout[-SAY:]}\n{done.stderr[-SAY:]}\n{log.read_text()[-SAY:]}"
