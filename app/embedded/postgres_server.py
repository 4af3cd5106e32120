"""PostgreSQL: making its data, its command line, when it is ready, the database and the role of the app."""

import asyncio
import os
import pwd
import secrets
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import asyncpg

from app.embedded.account import Account
from app.embedded.binaries import PostgresBinaries, find_postgres
from app.embedded.child import Command, run_once
from app.embedded.directory import POSTGRES_PORT, DataDirectory, make_server_directory, sync_directory
from app.embedded.errors import DataDirectoryRefused, ServerStartFailed
from app.embedded.leftovers import POSTGRES_STOP, POSTGRES_STOP_NOW

CONNECT_TIMEOUT_S: Final = 5.0  # a starting server refuses at once; only a stopped one does not answer
APP_ROLE: Final = "shieldx_app"
APP_DATABASE: Final = "shieldx"

# An eighth of the memory: a million accounts with their indexes take half a gigabyte. What no page has come to is not used.
# Postgres' own default is the lower bound.
BUFFERS_SHARE: Final = 8
BUFFERS_MIN_MB: Final = 128
BUFFERS_MAX_MB: Final = 512  # more makes starts and stops slower: 1 GiB takes 0.08 s for each
MEMORY_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")  # of the container, "max" where there is none

SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_wal_size": "2GB",
    "max_connections": "100",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
"""Named on the command line, so that no file in the data directory can weaken them."""

INITDB_OPTIONS: Final = (
    *("-U", "postgres", "-A", "trust", "--auth-host=reject", "-E", "UTF8"),
    *("--no-locale", "--data-checksums", "--no-instructions"),
)


@dataclass(frozen=True)
class PostgresServer:
    """One PostgreSQL server on a data directory, not yet running."""

    command: Command
    sockets: Path

    async def is_ready(self) -> bool:
        """Whether the server accepts sessions; it does not while it starts, recovers or stops."""
        try:
            session = await self._connect()
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            return False
        except asyncpg.PostgresError:
            # Another refusal, too many sessions say, is an answer of a server that serves.
            return True
        await session.close()
        return True

    async def make_database(self) -> None:
        """Make the app's role and database where they are missing."""
        session = await self._connect()
        try:
            if not await session.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", APP_ROLE):
                await session.execute(f"CREATE ROLE {APP_ROLE} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE")
            if not await session.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", APP_DATABASE):
                await session.execute(f"CREATE DATABASE {APP_DATABASE}")
        finally:
            await session.close()

    async def _connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        return await asyncpg.connect(
            host=str(self.sockets),
            port=POSTGRES_PORT,
            user="postgres",
            database="postgres",
            timeout=CONNECT_TIMEOUT_S,
        )


async def prepare_postgres(directory: DataDirectory, sockets: Path, account: Account | None) -> PostgresServer:
    """Choose the installation that can open the data, and make the data at the first start.

    refusal  DataDirectoryRefused: the data was written by a major version that is not here
    faults   BinaryMissing, ServerStartFailed (initdb)
    """
    binaries = await find_postgres(data_major(directory))
    command = Command(
        name="postgres",
        argv=(str(binaries.postgres),),
        cwd=directory.postgres,
        reach=(directory.postgres, sockets, *binaries.support_directories),
        log=directory.log / "postgres.log",
        account=account,
        death_signal=signal.SIGINT,
        stop_plan=POSTGRES_STOP,
        # PostgreSQL 18 never finishes a fast shutdown that it is asked for while it recovers from the
        # death of a worker. Before it serves there is nothing to lose by an immediate one.
        unready_plan=POSTGRES_STOP_NOW,
    )
    if not directory.postgres.exists():
        await _make_data(directory, binaries, command)
    options = {
        **SETTINGS,
        "unix_socket_directories": '"' + str(sockets).replace('"', '""') + '"',
        "wal_compression": await _wal_compression(binaries, directory),
        "shared_buffers": f"{buffers_mb()}MB",
    }
    argv = [str(binaries.postgres), "-D", str(directory.postgres), "-p", str(POSTGRES_PORT)]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    return PostgresServer(replace(command, argv=tuple(argv)), sockets)


def buffers_mb(limit: Path = MEMORY_LIMIT) -> int:
    """Shared buffers for this machine, or for the container whose limit of memory in bytes stands in `limit`: MiB."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        memory_bytes = min(memory_bytes, int(limit.read_text()))
    return max(BUFFERS_MIN_MB, min(BUFFERS_MAX_MB, memory_bytes // BUFFERS_SHARE // 2**20))


def data_major(directory: DataDirectory) -> int | None:
    """Major version that wrote the data; None if there is no data yet."""
    if not directory.postgres.exists():
        return None
    try:
        return int((directory.postgres / "PG_VERSION").read_text())
    except (FileNotFoundError, ValueError):
        raise DataDirectoryRefused(
            f"{directory.postgres} holds no PostgreSQL data (no readable PG_VERSION). "
            "Restore it, or move it away to start with an empty database."
        ) from None


async def _make_data(directory: DataDirectory, binaries: PostgresBinaries, command: Command) -> None:
    """Run initdb beside the final place and rename, so that an interrupted one leaves nothing in the way."""
    uid = command.account.uid if command.account else os.geteuid()
    try:
        pwd.getpwuid(uid)
    except KeyError:
        raise ServerStartFailed(
            f"initdb needs a name for uid {uid}, and the system knows none. Add a line for it to /etc/passwd "
            "(in a container: run as a user of the image), or set DATABASE_URL."
        ) from None
    draft = directory.root / f"postgres.init-{secrets.token_hex(4)}"
    make_server_directory(draft, command.account)
    try:
        await run_once(
            replace(
                command,
                name="initdb",
                argv=(str(binaries.initdb), "-D", str(draft), *INITDB_OPTIONS),
                cwd=draft,
                reach=(draft, *binaries.support_directories),
                death_signal=signal.SIGKILL,
            )
        )
        draft.rename(directory.postgres)
        sync_directory(directory.root)
    finally:
        if draft.exists():
            await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)


async def _wal_compression(binaries: PostgresBinaries, directory: DataDirectory) -> str:
    """lz4 if this PostgreSQL was built with it. `postgres -C` checks a setting without starting a server."""
    question = ("-C", "wal_compression", "-D", str(directory.postgres), "-c", "wal_compression=lz4")
    process = await asyncio.create_subprocess_exec(
        binaries.postgres,
        *question,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return "lz4" if await process.wait() == 0 else "off"
