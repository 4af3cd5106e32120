"""A private Redis and PostgreSQL for one data directory, from start to stop."""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType

from app.embedded.account import Account, server_account
from app.embedded.child import Child
from app.embedded.directory import (
    DataDirectory,
    Endpoints,
    Hold,
    hold,
    make_endpoints,
    make_sockets_directory,
    remove_sockets_directory,
    write_endpoints,
)
from app.embedded.leftovers import POSTGRES_ORPHAN_STOP, REDIS_STOP, stop_leftovers
from app.embedded.postgres_server import prepare_postgres
from app.embedded.redis_server import prepare_redis


class EmbeddedServers:
    """Runs both servers while the context is open, and restarts one that dies.

    Open it in the main thread: the kernel stops the servers when the thread that started them ends.
    """

    def __init__(self, data_dir: Path, *, on_exit: Callable[[str, int], None]) -> None:
        """Start nothing yet.

        data_dir  made at the first start; found again at later ones
        on_exit   called with "postgres" or "redis" and the exit code (negative: the signal) before a restart
        """
        self._data_dir = data_dir
        self._on_exit = on_exit
        self._directory: DataDirectory | None = None
        self._hold: Hold | None = None
        self._cleared = False  # Nothing that a crash left is running.
        self._sockets: Path | None = None
        self._postgres: Child | None = None
        self._redis: Child | None = None

    async def __aenter__(self) -> Endpoints:
        """Start both servers and wait until they answer.

        refusal  DataDirectoryBusy, DataDirectoryRefused
        faults   BinaryMissing, ServerStartFailed; nothing is left running
        """
        directory = DataDirectory.at(self._data_dir)
        self._directory = directory
        self._hold = await hold(directory)
        try:
            if self._hold.crashed:
                await _clear_crash(directory)
            self._cleared = True
            account = server_account((directory.postgres, directory.redis))
            directory.log.mkdir(mode=0o700, exist_ok=True)
            self._sockets = make_sockets_directory(directory, account)
            await _both(
                self._start_redis(directory, self._sockets, account),
                self._start_postgres(directory, self._sockets, account),
            )
            endpoints = make_endpoints(self._sockets)
            write_endpoints(directory, endpoints)
        except BaseException:
            await self._close()
            raise
        return endpoints

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop both servers; nothing is left running, even if this is cancelled."""
        await self._close()

    async def _start_redis(self, directory: DataDirectory, sockets: Path, account: Account | None) -> None:
        server = await prepare_redis(directory, sockets, account)
        self._redis = Child(server.command, on_exit=self._on_exit)
        await self._redis.start(server.is_ready)

    async def _start_postgres(self, directory: DataDirectory, sockets: Path, account: Account | None) -> None:
        server = await prepare_postgres(directory, sockets, account)
        self._postgres = Child(server.command, on_exit=self._on_exit)
        await self._postgres.start(server.is_ready)
        await server.make_database()

    async def _close(self) -> None:
        stopping = asyncio.create_task(self._stop_all())
        cancelled = False
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                # Servers left behind would be worse than a late answer; the stop plans bound the wait.
                cancelled = True
        stopping.result()
        if cancelled:
            raise asyncio.CancelledError

    async def _stop_all(self) -> None:
        if self._directory is not None:
            self._directory.endpoints.unlink(missing_ok=True)
        try:
            # Redis is stopped even if PostgreSQL cannot be.
            try:
                await _stop(self._postgres)
            finally:
                await _stop(self._redis)
            if self._sockets is not None:
                remove_sockets_directory(self._sockets)
        except BaseException:
            self._cleared = False
            raise
        finally:
            if self._hold is not None:
                self._hold.release(clean=self._cleared)
            self._postgres = self._redis = self._sockets = self._hold = None


async def _stop(child: Child | None) -> None:
    if child is not None:
        await child.stop()


async def _both(*starts: Coroutine[None, None, None]) -> None:
    """Run the starts together; the first fault cancels the others and is raised."""
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _clear_crash(directory: DataDirectory) -> None:
    """Stop and remove what a server left that was killed on this directory."""
    half_made = directory.half_made
    await asyncio.gather(
        stop_leftovers((directory.postgres, *half_made), POSTGRES_ORPHAN_STOP),
        stop_leftovers((directory.redis,), REDIS_STOP),
    )
    for draft in half_made:
        await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
    # Its pid may belong to another process by now, which would keep PostgreSQL from starting.
    with contextlib.suppress(FileNotFoundError):
        (directory.postgres / "postmaster.pid").unlink()
    directory.endpoints.unlink(missing_ok=True)
