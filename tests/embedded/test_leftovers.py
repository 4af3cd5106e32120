"""Servers and pid files that a crash left do not stop the next start."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from embedded_probe import eventually, main_process, server_processes, write_and_read

from app.embedded import EmbeddedServers
from app.embedded.account import Account
from app.embedded.binaries import find_postgres, find_redis
from app.embedded.leftovers import POSTGRES_STOP, find_leftovers, stop_leftovers
from tests.launcher import launched


def ignore_exit(_name: str, _code: int) -> None:
    """Take no note of a restart."""


def mark_as_crashed(data_dir: Path) -> None:
    """Leave the lock file as a process leaves it that was killed."""
    (data_dir / "lock").write_text("1\n")


@pytest.fixture
async def orphans(data_dir: Path, made_before: None) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Both servers running on data made before, with nobody who supervises them."""
    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        await write_and_read(endpoints, "before")
    postgres, redis = await find_postgres(None), await find_redis(None)
    sockets = data_dir / "postgres"
    processes = [
        await run_unsupervised(data_dir / "postgres", postgres.postgres, "-D", ".", "-k", ".", "-c", "listen_addresses="),
        await run_unsupervised(data_dir / "redis", redis.server, "--port", "0", "--unixsocket", "redis.sock"),
    ]
    await eventually((sockets / ".s.PGSQL.5432").is_socket)
    await eventually((data_dir / "redis" / "redis.sock").is_socket)
    mark_as_crashed(data_dir)
    yield processes
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


def owner_of(path: Path) -> os.stat_result:
    """Who a directory belongs to."""
    return path.stat()


async def run_unsupervised(cwd: Path, *argv: object) -> asyncio.subprocess.Process:
    """Run a server in its directory, as that directory's owner."""
    owner = owner_of(cwd)
    account = Account(owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None
    return await asyncio.create_subprocess_exec(
        *launched([str(part) for part in argv], cwd, account=account, reach=[cwd]), stderr=asyncio.subprocess.DEVNULL
    )


async def test_orphaned_servers_are_stopped_and_their_data_is_served(
    data_dir: Path, orphans: list[asyncio.subprocess.Process]
) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        ended = [await process.wait() for process in orphans]
        kept, _ = await write_and_read(endpoints, "after")
        running = main_process(data_dir, "postgres").pid

    assert kept == ["before", "after"]
    assert ended == [0, 0], "both must have been shut down in order"
    assert running not in [process.pid for process in orphans]


async def test_servers_that_hang_are_killed_with_their_workers(
    data_dir: Path, orphans: list[asyncio.subprocess.Process]
) -> None:
    await eventually(lambda: len(psutil.Process(orphans[0].pid).children()) > 1)
    for process in server_processes(data_dir):
        process.suspend()

    await stop_leftovers((data_dir / "postgres",), ((signal.SIGINT, 0.2), (signal.SIGKILL, 10.0)))

    assert [process.pid for process in server_processes(data_dir)] == [orphans[1].pid]
    await stop_leftovers((data_dir / "redis",), ((signal.SIGTERM, 0.2), (signal.SIGKILL, 10.0)))
    assert not server_processes(data_dir)


async def test_killed_orphan_is_recovered_from(data_dir: Path, orphans: list[asyncio.subprocess.Process]) -> None:
    for process in orphans:
        process.kill()

    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        kept, _ = await write_and_read(endpoints, "after")

    assert kept == ["before", "after"]


@pytest.mark.usefixtures("made_before")
async def test_recycled_pid_is_not_killed_and_does_not_stop_the_start(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        await write_and_read(endpoints, "before")
    postgres = data_dir / "postgres"
    # PostgreSQL respects the pid of any process that its own user runs.
    stranger = await asyncio.create_subprocess_exec("sleep", "60", cwd=data_dir, user=postgres.stat().st_uid)
    (postgres / "postmaster.pid").write_text(f"{stranger.pid}\n{postgres}\n1\n5432\n{data_dir}\n\n 1 1\nready\n")
    mark_as_crashed(data_dir)

    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        kept, _ = await write_and_read(endpoints, "after")

    assert kept == ["before", "after"]
    assert stranger.returncode is None
    stranger.kill()
    await stranger.wait()


@pytest.mark.usefixtures("made_before")
async def test_stale_sockets_do_not_stop_the_start(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit):
        pass
    run = data_dir / "run"
    run.mkdir(mode=0o700)
    (run / "redis.sock").touch()
    (run / ".s.PGSQL.5432").touch()
    (run / ".s.PGSQL.5432.lock").write_text(f"{os.getppid()}\n")
    mark_as_crashed(data_dir)

    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        kept, _ = await write_and_read(endpoints, "first")

    assert kept == ["first"]


@pytest.mark.usefixtures("made_before")
async def test_only_database_servers_in_the_directory_are_found(data_dir: Path, tmp_path: Path) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit):
        stranger = await asyncio.create_subprocess_exec("sleep", "60", cwd=data_dir / "postgres")

        found = find_leftovers((data_dir / "postgres",))
        elsewhere = find_leftovers((tmp_path,))

        stranger.kill()
        await stranger.wait()

    assert found
    assert stranger.pid not in [process.pid for process in found]
    assert not elsewhere


async def test_clean_directory_has_nothing_to_stop(tmp_path: Path) -> None:
    assert await stop_leftovers((tmp_path,), POSTGRES_STOP) == 0
    assert psutil.pid_exists(os.getpid())
