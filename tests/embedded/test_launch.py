"""The launcher: account, capability, death signal, and what it says when it cannot."""

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from embedded_probe import AS_ROOT, NOBODY, eventually, launch_argv

from app.embedded.launch import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, EXIT_CANNOT_START

PR_CAPBSET_DROP = 24
CAP_SETPCAP = 8
SHOW_STATUS = ("/bin/cat", "/proc/self/status")


def launched(
    argv: tuple[object, ...], cwd: Path, before: Callable[[], None] | None = None, **changes: object
) -> subprocess.CompletedProcess[str]:
    """Run `argv` through the launcher to its end."""
    return subprocess.run(launch_argv(argv, cwd, **changes), capture_output=True, text=True, check=False, preexec_fn=before)


def status_of(text: str) -> dict[str, str]:
    """The lines of /proc/self/status."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def without(*capabilities: int) -> Callable[[], None]:
    """What drops capabilities for good in a child, as a container runtime does."""
    libc = ctypes.CDLL(None)

    def drop() -> None:
        if AS_ROOT:
            for capability in capabilities:
                libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)

    return drop


def test_reachable_paths_need_no_capability(open_dir: Path) -> None:
    run = launched(SHOW_STATUS, open_dir, reach=[str(open_dir)])

    status = status_of(run.stdout)
    user = NOBODY.pw_uid if AS_ROOT else os.geteuid()
    assert status["Uid"].split() == [str(user)] * 4
    ours = status_of(Path("/proc/self/status").read_text())
    assert status["CapAmb"] == ours["CapAmb"]
    if AS_ROOT:
        assert status["Groups"] == ""
        assert int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    ("dropped", "kept"),
    [
        ((), 1 << CAP_DAC_READ_SEARCH),
        ((CAP_DAC_READ_SEARCH,), 1 << CAP_DAC_OVERRIDE),
    ],
)
def test_root_only_paths_are_reached_with_the_least_capability(tmp_path: Path, dropped: tuple[int, ...], kept: int) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "inside").mkdir(mode=0o755)
    reach = hidden / "inside"

    run = launched(
        ("/bin/sh", "-c", f"cat /proc/self/status; ls -d {reach}/."),
        tmp_path,
        without(*dropped),
        reach=[str(reach)],
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == f"{reach}/."
    status = status_of(run.stdout)
    if AS_ROOT:
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == kept
        assert hidden.stat().st_mode & 0o777 == 0o700


def test_program_below_a_root_only_directory_runs_and_finds_itself(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\ntest -x /proc/self/exe && echo ran\n")
    program.chmod(0o755)
    tmp_path.chmod(0o700)

    run = launched((program,), tmp_path)

    assert (run.returncode, run.stdout) == (0, "ran\n"), run.stderr


def test_missing_capability_is_explained(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    account = [NOBODY.pw_uid, NOBODY.pw_gid]

    run = launched(
        SHOW_STATUS,
        tmp_path,
        without(CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SETPCAP),
        reach=[str(hidden)],
        account=account,
    )

    assert run.returncode == EXIT_CANNOT_START
    assert run.stdout == ""
    # An ordinary user fails one step earlier: it cannot become another user at all.
    expected = f"uid {NOBODY.pw_uid} cannot use {hidden}" if AS_ROOT else "cannot switch"
    assert expected in run.stderr
    assert "ordinary user" in run.stderr


def test_wrong_parent_is_noticed(open_dir: Path) -> None:
    run = launched(SHOW_STATUS, open_dir, parent_pid=1)

    assert run.returncode == EXIT_CANNOT_START
    assert "is gone" in run.stderr


def test_missing_program_is_explained(open_dir: Path) -> None:
    run = launched((open_dir / "absent",), open_dir)

    assert run.returncode == EXIT_CANNOT_START
    assert "absent" in run.stderr


async def test_program_dies_with_its_parent(open_dir: Path) -> None:
    pid_file = open_dir / "pid"
    script = (
        "import os, subprocess, sys, json\n"
        "argv = json.loads(sys.argv[1])\n"
        "order = json.loads(argv[-1]) | {'parent_pid': os.getpid()}\n"
        "subprocess.run([*argv[:-1], json.dumps(order)])\n"
    )
    trap = f"trap 'echo stopped > {open_dir}/stopped; exit' INT"
    wait_for_it = f"{trap}; echo $$ > {pid_file}; while :; do sleep 0.05; done"
    argv = launch_argv(("/bin/sh", "-c", wait_for_it), open_dir, death_signal=int(signal.SIGINT))
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, json.dumps(argv))
    await eventually(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))

    parent.kill()
    await parent.wait()

    await eventually((open_dir / "stopped").exists)
