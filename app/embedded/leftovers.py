"""Servers that outlived the process that started them: find them, and stop them.

A server that we started stands in its own directory below the data directory, where no other program has
business. So a process is ours if it is a database server by name and has such a directory as working
directory; a recycled pid never matches, and no pid file has to be trusted.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

import psutil

SERVER_NAMES: Final = frozenset({"postgres", "initdb", "valkey-server", "redis-server"})
POLL_S: Final = 0.01

StopPlan = tuple[tuple[signal.Signals, float], ...]
"""Signals in order, each with the seconds that it gets before the next one is sent."""

POSTGRES_STOP_NOW: Final[StopPlan] = (
    (signal.SIGQUIT, 5.0),  # immediate shutdown: the next start recovers from the WAL
    (signal.SIGKILL, 5.0),
)
POSTGRES_STOP: Final[StopPlan] = (
    (signal.SIGINT, 30.0),  # fast shutdown: sessions end, a checkpoint is written
    *POSTGRES_STOP_NOW,
)
POSTGRES_ORPHAN_STOP: Final[StopPlan] = (
    (signal.SIGINT, 10.0),  # somebody waits for the start, and recovery from the WAL is as safe
    *POSTGRES_STOP_NOW,
)
REDIS_STOP: Final[StopPlan] = (
    (signal.SIGTERM, 10.0),  # the append-only file is written and synced
    (signal.SIGKILL, 5.0),
)


def find_leftovers(directories: Collection[Path]) -> list[psutil.Process]:
    """Server processes whose working directory is one of `directories` (resolved paths)."""
    wanted = {str(directory) for directory in directories}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            # The working directory of somebody else's process is unreadable, hence not ours.
            if process.name() in SERVER_NAMES and process.cwd().removesuffix(" (deleted)") in wanted:
                found.append(process)
    return found


async def stop_leftovers(directories: Collection[Path], plan: StopPlan) -> int:
    """Stop every server that stands in `directories` and wait until all are gone.

    returns  how many processes were found
    faults   TimeoutError: a process survived SIGKILL (it hangs in the kernel, on a dead disk say)
    """
    found = find_leftovers(directories)
    count = len(found)
    for number, seconds in plan:
        if not found:
            break
        members = {process.pid for process in found}
        for process in found:
            # A server passes SIGINT and SIGQUIT on to its workers itself; SIGKILL it cannot.
            with contextlib.suppress(psutil.Error):
                if number == signal.SIGKILL or process.ppid() not in members:
                    process.send_signal(number)
        deadline = time.monotonic() + seconds
        while found and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
            found = [process for process in found if _is_alive(process)] or find_leftovers(directories)
    if found:
        raise TimeoutError(f"cannot stop the processes {[process.pid for process in found]}")
    return count


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
