"""What the tests of the embedded servers observe: processes, data, and a server in a process of its own."""

import asyncio
import contextlib
import json
import os
import pwd
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil
from redis.asyncio import Redis

import app.embedded
from app.embedded import Endpoints
from app.embedded.leftovers import find_leftovers

REPOSITORY: Final = Path(app.embedded.__file__).parents[2]
LAUNCHER: Final = REPOSITORY / "app" / "embedded" / "launch.py"
SERVE: Final = Path(__file__).with_name("serve.py")
DEADLINE_S: Final = 30.0
AS_ROOT: Final = os.geteuid() == 0
NOBODY: Final = pwd.getpwnam("nobody")


async def eventually(holds: Callable[[], object]) -> None:
    """Wait until `holds` is true, or fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "the awaited state was not reached"
        await asyncio.sleep(0.005)


def server_processes(data_dir: Path) -> list[psutil.Process]:
    """Every server process that stands in `data_dir`, workers included."""
    root = data_dir.resolve()
    return find_leftovers((root / "postgres", root / "redis", *root.glob("postgres.init-*")))


def main_process(data_dir: Path, name: str) -> psutil.Process:
    """The process of "postgres" or "redis" that the others of its directory descend from."""
    found = find_leftovers((data_dir.resolve() / name,))
    pids = {process.pid for process in found}
    return next(process for process in found if process.ppid() not in pids)


async def write_and_read(endpoints: Endpoints, note: str) -> tuple[list[object], list[object]]:
    """Keep `note` in both databases; every note that PostgreSQL and Redis hold then."""
    redis = Redis.from_url(endpoints.redis_url, decode_responses=True)
    session = await asyncpg.connect(endpoints.admin_database_url)
    try:
        await session.execute("CREATE TABLE IF NOT EXISTS notes (note text)")
        await session.execute("INSERT INTO notes VALUES ($1)", note)
        await redis.rpush("notes", note)
        rows = await session.fetch("SELECT note FROM notes ORDER BY ctid")
        return [row["note"] for row in rows], list(await redis.lrange("notes", 0, -1))
    finally:
        await redis.aclose()
        await session.close()


def launch_argv(argv: tuple[object, ...], cwd: Path, **changes: Any) -> tuple[str, ...]:
    """Command line that runs `argv` through the launcher, as nobody if we are root, else as we are."""
    order = {
        "parent_pid": os.getpid(),
        "death_signal": int(signal.SIGKILL),
        "account": [NOBODY.pw_uid, NOBODY.pw_gid] if AS_ROOT else None,
        "cwd": str(cwd),
        "reach": [],
        "argv": [str(part) for part in argv],
    }
    return (sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(order | changes))


Serve = Callable[..., Awaitable["Serving"]]
"""The fixture `serve`."""


class Serving:
    """A process that runs `serve.py`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Wrap a started process; its stdout is ours."""
        self.process = process

    @classmethod
    async def start(cls, *argv: object) -> "Serving":
        """Run `argv`, in an environment that would lead a careless PostgreSQL or client astray."""
        misleading = {"PGPORT": "1", "PGDATA": "/nonexistent", "PGHOST": "/nonexistent"}
        process = await asyncio.create_subprocess_exec(
            *(str(part) for part in argv),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", **misleading},
        )
        return cls(process)

    async def endpoints(self) -> Endpoints:
        """The endpoints that it prints when it is ready."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), DEADLINE_S)
        assert line, "serve.py ended before it was ready"
        return Endpoints(**json.loads(line))

    async def end(self, number: signal.Signals) -> int:
        """Send a signal if it still runs, and wait for the end; its exit code."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), DEADLINE_S)
