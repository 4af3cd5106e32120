"""One supervised server process: started through the launcher, restarted when it dies, stopped in the end."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from app.embedded.account import Account
from app.embedded.errors import ServerStartFailed
from app.embedded.leftovers import StopPlan, stop_leftovers

LAUNCHER: Final = Path(__file__).with_name("launch.py")
BACKOFF_MIN_S: Final = 0.01
BACKOFF_MAX_S: Final = 2.0
BACKOFF_DOUBLINGS_MAX: Final = 8  # 10 ms doubled 8 times exceeds the maximum; far more would overflow a float
BACKOFF_RESET_S: Final = 10.0  # a server that lived this long starts again without delay
READY_POLL_MIN_S: Final = 0.005
READY_POLL_MAX_S: Final = 0.1
LOG_SIZE_BYTES_MAX: Final = 32 << 20  # per server, and as much again in the .1 file
LOG_CHECK_S: Final = 60.0
LOG_TAIL_BYTES: Final = 2_000  # the last lines, for the message of a failed start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """How to run one server.

    name         what `on_exit` and messages call it
    argv         program (absolute) and arguments
    cwd          its own directory, where `leftovers` recognises it
    reach        directories it must be able to read by their full path
    log          file that gets its stdout and stderr
    death_signal sent by the kernel when this process dies
    stop_plan    how to stop it when it answers
    unready_plan how to stop it when it does not
    environment  variables of its own, beside the few that every server gets
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    reach: tuple[Path, ...]
    log: Path
    account: Account | None
    death_signal: signal.Signals
    stop_plan: StopPlan
    unready_plan: StopPlan
    environment: Mapping[str, str] = field(default_factory=dict)


async def spawn(command: Command) -> asyncio.subprocess.Process:
    """Start `command` in a session of its own, so that Ctrl-C in a terminal reaches only us."""
    account = command.account
    order = {
        "parent_pid": os.getpid(),
        "death_signal": int(command.death_signal),
        "account": [account.uid, account.gid] if account else None,
        "cwd": str(command.cwd),
        "reach": [str(path) for path in command.reach],
        "argv": command.argv,
    }
    # PGDATA, PGPORT and the like must not reach the servers.
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    log = os.open(command.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            LAUNCHER,
            json.dumps(order),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**environment, "LC_ALL": "C", **command.environment},
            start_new_session=True,
        )
    finally:
        os.close(log)


async def run_once(command: Command) -> None:
    """Run a program to its end; its whole session is killed if we are cancelled.

    faults  ServerStartFailed: it ended with another code than 0
    """
    start = log_size(command.log)
    process = await spawn(command)
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    if code != 0:
        raise start_failure(command, code, start)


class Child:
    """A server that runs from `start` to `stop`, whatever happens to its process in between."""

    def __init__(self, command: Command, *, on_exit: Callable[[str, int], None]) -> None:
        """Start nothing yet. `on_exit` gets the command's name and the exit code before a restart."""
        self._command = command
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[int] | None = None
        self._is_ready: Callable[[], Awaitable[bool]] | None = None
        self._ready = False
        self._stop_asked = asyncio.Event()

    async def start(self, is_ready: Callable[[], Awaitable[bool]]) -> None:
        """Start the server and wait until `is_ready`, as long as its process lives (recovery may take long).

        faults  ServerStartFailed: the process ended first
        """
        self._is_ready = is_ready
        log_start = log_size(self._command.log)
        self._task = asyncio.create_task(self._supervise(), name=f"embedded-{self._command.name}")
        pause_s = READY_POLL_MIN_S
        while True:
            ready = self._process is not None and await is_ready()
            # From here to the end there is no await, so a death is either seen here or leads to a restart.
            if self._task.done():
                raise start_failure(self._command, self._task.result(), log_start)
            if ready:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, READY_POLL_MAX_S)
        self._ready = True

    async def stop(self) -> None:
        """Stop the server by its plan, and whatever it left behind. Safe to call at any time."""
        self._stop_asked.set()
        if self._task is None:
            return
        answers = self._is_ready is not None and await self._is_ready()
        code: int | None = None
        for number, seconds in self._command.stop_plan if answers else self._command.unready_plan:
            self._signal(number)
            done, _ = await asyncio.wait({self._task}, timeout=seconds)
            if done:
                code = self._task.result()
                break
            logger.warning("%s did not stop within %g s of %s", self._command.name, seconds, number.name)
        if code != 0:
            # A server that did not end by itself may have left workers.
            await stop_leftovers((self._command.cwd,), self._command.unready_plan)

    async def _supervise(self) -> int:
        """Run the server again and again, until it is to stop or ends before it was ready; its exit code."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while True:
            started_s = loop.time()
            code = await self._run()
            if self._stop_asked.is_set() or not self._ready:
                return code
            logger.error("%s died with code %d; starting it again", self._command.name, code)
            loop.call_soon(self._on_exit, self._command.name, code)
            if loop.time() - started_s > BACKOFF_RESET_S:
                deaths = 0
            delay_s = backoff_s(deaths)
            deaths += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_asked.wait(), delay_s)
                return code
            await self._clear_leftovers()
            if self._stop_asked.is_set():
                return code

    async def _clear_leftovers(self) -> None:
        """Workers of a killed server still hold its shared memory and files."""
        try:
            await stop_leftovers((self._command.cwd,), self._command.unready_plan)
            (self._command.cwd / "postmaster.pid").unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot clear up after %s: %s", self._command.name, error)

    async def _run(self) -> int:
        """One life of the process: start it, keep its log small, return its exit code."""
        try:
            self._process = await spawn(self._command)
        except OSError as error:
            logger.warning("cannot start %s: %s", self._command.name, error)
            return -1
        if self._stop_asked.is_set():
            # `stop` had no process to send its first signal to.
            self._signal(self._command.unready_plan[0][0])
        end = asyncio.create_task(self._process.wait())
        while not end.done():
            await asyncio.wait({end}, timeout=LOG_CHECK_S)
            if log_size(self._command.log) > LOG_SIZE_BYTES_MAX:
                await asyncio.to_thread(set_log_aside, self._command.log)
        return end.result()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def backoff_s(deaths: int) -> float:
    """Seconds to wait before a restart, after `deaths` earlier deaths in a row."""
    return min(BACKOFF_MIN_S * 2.0 ** min(deaths, BACKOFF_DOUBLINGS_MAX), BACKOFF_MAX_S)


def start_failure(command: Command, code: int, log_start: int) -> ServerStartFailed:
    """The fault for a process that ended with `code`, with what it logged last, after byte `log_start`."""
    tail = ""
    with contextlib.suppress(OSError), command.log.open("rb") as log:
        log.seek(max(log_start, log_size(command.log) - LOG_TAIL_BYTES))
        tail = log.read(LOG_TAIL_BYTES).decode(errors="replace").strip()
    return ServerStartFailed(f"{command.name} ended with code {code} before it was ready; {command.log} says:\n{tail}")


def log_size(log: Path) -> int:
    """Bytes in a log file; 0 if there is none."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def set_log_aside(log: Path) -> None:
    """Keep a copy of a log beside it. The server goes on writing to the same, now empty, file."""
    try:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)
    except OSError as error:
        logger.warning("cannot shorten %s: %s", log, error)
