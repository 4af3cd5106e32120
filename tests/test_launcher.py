"""A test run that is killed leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.server_fork import REPOSITORY

DEADLINE_S = 60.0
# What a test run does, with two programs that would never end: a command of ours that waits at a pipe, and a foreign one.
RUN = """
import os, subprocess, sys
from pathlib import Path
from tests.launcher import launched
from tests.server_fork import server_fork
directory = Path(sys.argv[1])
words = ["audit", "verify", "--key", "none", "--receipt", str(directory / "pipe")]
server = server_fork().launch(words, dict(os.environ), directory, directory / "log")
sleep = subprocess.Popen(launched(["/bin/sleep", "600"], directory))
print(server.pid, sleep.pid, flush=True)
sys.stdin.read()
"""


def test_forked_servers_and_launched_programs_die_with_the_run_that_started_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(
        [sys.executable, "-c", RUN, tmp_path], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        started = [psutil.Process(int(word)) for word in run.stdout.readline().split()]
        family = psutil.Process(run.pid).children(recursive=True)

        run.kill()

    assert set(started) < set(family), "the process that servers are forked from is one more"
    deadline_s = time.monotonic() + DEADLINE_S
    while left := [process for process in family if runs(process)]:
        assert time.monotonic() < deadline_s, f"these go on: {left}"
        time.sleep(0.02)


def runs(process: psutil.Process) -> bool:
    """Whether a process is there and more than an entry that nobody has collected yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
