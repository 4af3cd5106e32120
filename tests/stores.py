"""A private real Redis and a private real PostgreSQL for tests: start, stop, SIGKILL, start again on the same data.

Both listen on unix sockets in a directory of their own. As root they run as an unprivileged account, which the
launcher of `app.embedded` arranges. They die with the thread that started them, so nothing outlives a test run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import asyncpg
import psutil
from redis.asyncio import Redis

from app.db.migrate import migrate
from app.embedded.account import server_account
from app.embedded.child import Command
from app.embedded.directory import (
    POSTGRES_PORT,
    POSTGRES_SOCKET,
    DataDirectory,
    make_sockets_directory,
    remove_sockets_directory,
)
from app.embedded.leftovers import find_leftovers
from app.embedded.postgres_server import PostgresServer, prepare_postgres
from app.embedded.redis_server import RedisServer, prepare_redis
from tests.launcher import launched

START_TIMEOUT_S: Final = 90.0  # crash recovery of a test's database takes below 2 s
STOP_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.01
# For a cluster that no test kills: what only the loss of the machine would show is not waited for, nothing vacuums
# hundreds of databases of a few rows each, and the log of changes stays small, for it lies in memory.
NOT_KILLED: Final = (
    "fsync=off", "full_page_writes=off", "autovacuum=off", "max_connections=100", "max_wal_size=128MB", "min_wal_size=32MB",
)  # fmt: skip
# What a killed server leaves behind lies in its directory, and goes with that.
TIDY: Final = ("dynamic_shared_memory_type=mmap",)
MEMORY: Final = Path("/dev/shm")
MEMORY_LEAST_BYTES: Final = 1 << 30  # free in it: three clusters take 0.5 GB
MIGRATED: Final = "migrated"  # the database that migrated ones are copies of

T = TypeVar("T")


class StoreProcess:
    """One server process that this process starts and ends; a subclass knows its data and its address."""

    def __init__(self, directory: DataDirectory, command: Command) -> None:
        """`command` is how `app.embedded` runs this server on `directory`."""
        self.directory: Final = directory
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log_text(self) -> str:
        """The last lines that the server wrote."""
        with contextlib.suppress(FileNotFoundError):
            return self.command.log.read_text(errors="replace")[-4000:]
        return ""

    async def is_ready(self) -> bool:
        """Whether the server answers."""
        raise AssertionError(f"{type(self).__name__} must say when it is ready")

    def launch(self) -> None:
        """Start the process and return at once."""
        command = self.command
        with command.log.open("ab") as log:
            self.process = subprocess.Popen(
                launched(command.argv, command.cwd, account=command.account, reach=command.reach),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
                start_new_session=True,
            )

    async def start(self) -> None:
        """Start the process and wait until it answers."""
        self.launch()
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Wait until the server answers; AssertionError with its log when it ends or takes too long."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not await self.is_ready():
            alive = self.process is not None and self.process.poll() is None
            assert alive, f"{self.command.name} ended:\n{self.log_text}"
            assert time.monotonic() < deadline_s, f"{self.command.name} does not answer:\n{self.log_text}"
            await asyncio.sleep(POLL_S)

    def stop(self) -> None:
        """Stop the server as an operator would, and wait for its end."""
        number, _ = self.command.stop_plan[0]
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process = None

    def kill(self) -> None:
        """SIGKILL the server and everything that it forked, and wait until all are gone."""
        if self.process is None:
            return
        family = [self.process.pid]
        with contextlib.suppress(psutil.Error):
            family += [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_S)
        self.process = None
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while left := find_leftovers((self.command.cwd,)):
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            assert time.monotonic() < deadline_s, f"{self.command.name} does not die"


class PrivateRedis(StoreProcess):
    """A Redis-compatible server with the settings of the embedded one: AOF, everysec, no eviction."""

    def __init__(self, directory: DataDirectory, server: RedisServer) -> None:
        """Use `make` instead: it prepares the directory."""
        super().__init__(directory, server.command)
        self.socket: Final = server.socket
        self.server: Final = server

    @classmethod
    async def make(cls, root: Path) -> PrivateRedis:
        """Prepare a server on `root`, which is made if it is missing. It does not run yet."""
        directory = DataDirectory.at(root)
        directory.log.mkdir(mode=0o700, exist_ok=True)
        account = server_account((directory.postgres, directory.redis))
        sockets = make_sockets_directory(directory, account)
        return cls(directory, await prepare_redis(directory, sockets, account))

    @property
    def url(self) -> str:
        """REDIS_URL of the server, over its unix socket."""
        return f"unix://{quote(str(self.socket))}?db=0"

    def client(self) -> Any:
        """Return a client that reads texts. Close it with `aclose`."""
        return Redis.from_url(self.url, decode_responses=True)

    async def is_ready(self) -> bool:
        """Whether the server answers PING, its data loaded."""
        return await self.server.is_ready()

    async def flush(self) -> None:
        """Empty the server: FLUSHALL."""
        redis = Redis.from_url(self.url)
        try:
            await redis.flushall()
        finally:
            await redis.aclose()

    @property
    def aof(self) -> Path:
        """The part of the append-only file that is being written: the last `incr` file of the manifest."""
        folder = self.directory.redis / "appendonlydir"
        manifest = next(folder.glob("*.manifest")).read_text()
        names: list[str] = re.findall(r"^file (\S+) seq \d+ type i", manifest, re.MULTILINE)
        return folder / names[-1]

    def aof_size(self) -> int:
        """Bytes in that file; 0 while there is none."""
        try:
            return self.aof.stat().st_size
        except (FileNotFoundError, StopIteration, IndexError):
            return 0

    def cut_aof(self, keep_bytes: int) -> None:
        """Cut the file of a server that does not run."""
        assert self.process is None, "cut the file of a server that does not run"
        os.truncate(self.aof, keep_bytes)

    def erase(self) -> None:
        """Remove all data of a server that does not run, as after the loss of its disk."""
        assert self.process is None, "erase the data of a server that does not run"
        for path in self.directory.redis.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


class PrivatePostgres(StoreProcess):
    """A PostgreSQL cluster with the settings of the embedded one: fsync on, data checksums, unix socket only."""

    def __init__(self, directory: DataDirectory, server: PostgresServer, settings: Sequence[str] = ()) -> None:
        """Use `make` instead: it runs initdb."""
        options = [word for setting in settings for word in ("-c", setting)]
        super().__init__(directory, replace(server.command, argv=(*server.command.argv, *options)))
        self.sockets: Final = server.sockets
        self.server: Final = server
        self._migrated = False

    @classmethod
    async def make(cls, root: Path, settings: Sequence[str] = ()) -> PrivatePostgres:
        """Prepare a cluster in `root`, which is made if it is missing. It does not run yet.

        settings  "name=value" each, stronger than those of the embedded server
        """
        directory = DataDirectory.at(root)
        directory.log.mkdir(mode=0o700, exist_ok=True)
        account = server_account((directory.postgres, directory.redis))
        sockets = make_sockets_directory(directory, account)
        return cls(directory, await prepare_postgres(directory, sockets, account), settings)

    @property
    def socket(self) -> Path:
        """The unix socket file, for a proxy in front of it."""
        return self.sockets / POSTGRES_SOCKET

    async def is_ready(self) -> bool:
        """Whether the server accepts sessions."""
        return await self.server.is_ready()

    def kill(self) -> None:
        """SIGKILL the postmaster and all backends; its pid may belong to somebody else at the next start."""
        super().kill()
        (self.directory.postgres / "postmaster.pid").unlink(missing_ok=True)

    def kill_backend(self, pick: random.Random) -> None:
        """SIGKILL one of the processes that the postmaster forked: it ends all sessions and recovers by itself."""
        assert self.process is not None, "the server does not run"
        child = pick.choice(psutil.Process(self.process.pid).children())
        with contextlib.suppress(psutil.Error):
            child.kill()

    def url(self, database: str, user: str = "postgres") -> str:
        """DATABASE_URL of a database, over the unix socket."""
        return f"postgresql://{user}@/{database}?host={quote(str(self.sockets))}&port={POSTGRES_PORT}"

    async def make_database(self, name: str, template: str = "template0") -> str:
        """Make a database, an empty one by default, and return its URL for the superuser `postgres`."""
        session = await asyncpg.connect(self.url("postgres"))
        try:
            # Files copied, not pages logged: half the processor time where nothing waits for a disk.
            await session.execute(f'CREATE DATABASE "{name}" TEMPLATE {template} STRATEGY FILE_COPY')
        finally:
            await session.close()
        return self.url(name)

    async def drop_database(self, url: str) -> None:
        """Drop a database that no test needs any more: a run makes some 1,500, of 11 MB each."""
        name = urlsplit(url).path[1:]
        session = await asyncpg.connect(self.url("postgres"))
        try:
            await session.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        finally:
            await session.close()

    async def make_own_database(self) -> str:
        """Make an empty database under a name that nobody has, and return its URL."""
        return await self.make_database(f"t_{secrets.token_hex(6)}")

    async def make_migrated_database(self) -> str:
        """Make a database with the schema and nothing in it, and return its URL: migrated once, then copied."""
        if not self._migrated:
            session = await asyncpg.connect(await self.make_database(MIGRATED))
            await migrate(session)
            await session.close()
            self._migrated = True
        return await self.make_database(f"t_{secrets.token_hex(6)}", MIGRATED)

    async def allow_login(self, role: str) -> None:
        """Let an ordinary role log in, and make it if it is missing."""
        session = await asyncpg.connect(self.url("postgres"))
        try:
            known = await session.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role)
            await session.execute(f'{"ALTER" if known else "CREATE"} ROLE "{role}" LOGIN NOSUPERUSER')
        finally:
            await session.close()


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in an event loop of its own, from code that may stand beside another loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def memory() -> Path | None:
    """Where files lie in memory; None when there is too little room.

    A run makes and drops 1,500 databases of 350 files each, and ext4 gets slow at making files just after it has removed
    as many: with them in memory `tests/audit` takes 35 s of the kernel's time, with them on disk 215 s.
    """
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_LEAST_BYTES:
        return MEMORY
    return None


@contextlib.contextmanager
def store_directory(kind: str, within: Path | None = None) -> Iterator[Path]:
    """A short-named directory that every account may pass through; removed at the end.

    within  where, by default the directory for temporary files; what a killed run has left there is removed, too
    """
    place = within or Path(tempfile.gettempdir())
    for left in place.glob("shieldx-*-*-*"):
        if not psutil.pid_exists(int(left.name.split("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f"shieldx-{kind}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place, ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name) / "data"


@contextlib.contextmanager
def running_postgres(settings: Sequence[str] = (), *, killed: bool = True) -> Iterator[PrivatePostgres]:
    """A running cluster for as long as the context is open. Use it in the main thread.

    killed  whether a test may kill it; one that nobody kills lies in memory, if there is room
    """
    with store_directory("postgres", None if killed else memory()) as root:
        postgres = run_apart(PrivatePostgres.make(root, (*settings, *TIDY, *(() if killed else NOT_KILLED))))
        try:
            postgres.launch()
            run_apart(postgres.wait_ready())
            yield postgres
        finally:
            postgres.kill()
            remove_sockets_directory(postgres.sockets)


@contextlib.contextmanager
def running_redis() -> Iterator[PrivateRedis]:
    """A running Redis for as long as the context is open. Use it in the main thread."""
    with store_directory("redis") as root:
        redis = run_apart(PrivateRedis.make(root))
        try:
            redis.launch()
            run_apart(redis.wait_ready())
            yield redis
        finally:
            redis.kill()
            remove_sockets_directory(redis.socket.parent)
