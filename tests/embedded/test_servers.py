"""Start, stop, supervision, and what a SIGKILL leaves."""

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import asyncpg
import psutil
import pytest
from embedded_probe import (
    AS_ROOT,
    DEADLINE_S,
    NOBODY,
    SERVE,
    Serve,
    eventually,
    launch_argv,
    main_process,
    server_processes,
    write_and_read,
)

from app.embedded import (
    DataDirectoryBusy,
    EmbeddedServers,
    ServersNotRunning,
    ServerStartFailed,
    read_endpoints,
)
from app.embedded.postgres_server import buffers_mb

PROMPT_S = 10.0  # far above a shutdown that works, far below the time that a fast one is given


def ignore_exit(_name: str, _code: int) -> None:
    """Take no note of a restart."""


@pytest.mark.usefixtures("made_before")
async def test_data_survives_a_stop_and_a_start(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        await write_and_read(endpoints, "first")
    assert not server_processes(data_dir)

    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        kept = await write_and_read(endpoints, "second")

    assert kept == (["first", "second"], ["first", "second"])
    assert not server_processes(data_dir)


async def test_app_role_may_neither_be_superuser_nor_create(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        session = await asyncpg.connect(endpoints.database_url)
        role = await session.fetchrow(
            "SELECT rolname, rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user"
        )
        rows = await session.fetch(
            "SELECT name, setting FROM pg_settings WHERE name IN"
            " ('listen_addresses', 'fsync', 'synchronous_commit', 'data_checksums', 'server_encoding')"
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await session.execute("CREATE TABLE mine (id int)")
        await session.close()

    assert role is not None
    assert tuple(role) == ("shieldx_app", False, False, False)
    assert {row["name"]: row["setting"] for row in rows} == {
        "listen_addresses": "",
        "fsync": "on",
        "synchronous_commit": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
    }


@pytest.mark.usefixtures("made_before")
async def test_second_server_on_one_directory_is_refused(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit):
        with pytest.raises(DataDirectoryBusy, match=rf"{data_dir}.*\b{os.getpid()}\b"):
            await EmbeddedServers(data_dir, on_exit=ignore_exit).__aenter__()

        lock = str(data_dir / "lock")
        if sys.platform == "linux":
            opened = [link for process in server_processes(data_dir) for link in open_files(process.pid)]
            assert opened
            assert lock not in opened


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process point to."""
    links = Path(f"/proc/{pid}/fd")
    return [str(link.readlink()) for link in links.iterdir() if link.is_symlink()]


@pytest.mark.usefixtures("made_before")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_killed_parent_takes_its_servers_along_and_data_survives(data_dir: Path, serve: Serve, loop: str) -> None:
    serving = await serve(data_dir, loop=loop)
    await write_and_read(await serving.endpoints(), "before")

    await serving.end(signal.SIGKILL)
    await eventually(lambda: not server_processes(data_dir))
    with pytest.raises(ServersNotRunning):
        read_endpoints(data_dir)

    restarted = await serve(data_dir, loop=loop)
    kept = await write_and_read(await restarted.endpoints(), "after")
    assert kept == (["before", "after"], ["before", "after"])
    assert await restarted.end(signal.SIGTERM) == 0
    assert not server_processes(data_dir)


def half_made(data_dir: Path) -> list[Path]:
    """What an interrupted initdb left."""
    return list(data_dir.glob("postgres.init-*"))


async def test_first_start_killed_during_initdb_does_not_stop_the_next(data_dir: Path, serve: Serve) -> None:
    serving = await serve(data_dir)
    await eventually(lambda: list(data_dir.glob("postgres.init-*/base/1/PG_VERSION")))
    await serving.end(signal.SIGKILL)

    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        kept = await write_and_read(endpoints, "first")

    assert kept == (["first"], ["first"])
    assert not half_made(data_dir)


async def test_cancelled_start_leaves_nothing_running(data_dir: Path) -> None:
    opening = asyncio.create_task(EmbeddedServers(data_dir, on_exit=ignore_exit).__aenter__())
    await eventually(lambda: list(data_dir.glob("postgres.init-*/PG_VERSION")))

    opening.cancel()

    with pytest.raises(asyncio.CancelledError):
        await opening
    await eventually(lambda: not server_processes(data_dir))
    assert not (data_dir / "postgres").exists()
    assert not half_made(data_dir)


@pytest.mark.usefixtures("made_before")
async def test_cancelled_stop_still_stops_the_servers(data_dir: Path) -> None:
    servers = EmbeddedServers(data_dir, on_exit=ignore_exit)
    await servers.__aenter__()

    closing = asyncio.create_task(servers.__aexit__(None, None, None))
    await asyncio.sleep(0)
    closing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not server_processes(data_dir)


@pytest.mark.usefixtures("made_before")
async def test_stop_during_recovery_from_a_dead_worker_is_prompt(data_dir: Path) -> None:
    servers = EmbeddedServers(data_dir, on_exit=ignore_exit)
    endpoints = await servers.__aenter__()
    await write_and_read(endpoints, "before")
    main = main_process(data_dir, "postgres")
    main.children()[0].kill()

    started_s = asyncio.get_running_loop().time()
    await servers.__aexit__(None, None, None)
    stopped_s = asyncio.get_running_loop().time()

    assert stopped_s - started_s < PROMPT_S
    assert not server_processes(data_dir)
    async with EmbeddedServers(data_dir, on_exit=ignore_exit) as endpoints:
        kept, _ = await write_and_read(endpoints, "after")
    assert kept == ["before", "after"]


@pytest.mark.usefixtures("made_before")
async def test_server_that_cannot_start_is_reported_with_its_log(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit):
        pass
    (data_dir / "postgres" / "postgresql.conf").write_text("nonsense_setting = 1\n")

    with pytest.raises(ServerStartFailed, match="nonsense_setting"):
        await EmbeddedServers(data_dir, on_exit=ignore_exit).__aenter__()

    assert not server_processes(data_dir)


@pytest.mark.usefixtures("made_before")
@pytest.mark.parametrize("name", ["postgres", "redis"])
async def test_killed_server_is_started_again(data_dir: Path, name: str) -> None:
    exits: list[tuple[str, int]] = []
    async with EmbeddedServers(data_dir, on_exit=lambda *died: exits.append(died)) as endpoints:
        await write_and_read(endpoints, "before")
        for death in (1, 2):
            victim = main_process(data_dir, name)

            victim.kill()

            await eventually(partial(has_length, exits, death))
            await answering(data_dir, endpoints.admin_database_url, name, other_than=victim.pid)
        kept = await write_and_read(endpoints, "after")

    assert exits == [(name, -signal.SIGKILL)] * 2
    assert kept == (["before", "after"], ["before", "after"])


def has_length(things: list[tuple[str, int]], length: int) -> bool:
    """Whether there are that many."""
    return len(things) == length


async def answering(data_dir: Path, url: str, name: str, *, other_than: int) -> None:
    """Wait until a new process serves."""

    def is_replaced() -> bool:
        try:
            return main_process(data_dir, name).pid != other_than
        except (StopIteration, psutil.Error):
            return False

    async with asyncio.timeout(DEADLINE_S):
        await eventually(is_replaced)
        while True:
            try:
                session = await asyncpg.connect(url)
            except (OSError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(0.01)
                continue
            await session.close()
            break
        if name == "redis":
            await eventually((data_dir / "run" / "redis.sock").is_socket)
            _, writer = await connected(data_dir / "run" / "redis.sock")
            writer.close()


async def connected(socket: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as soon as something listens."""
    while True:
        try:
            return await asyncio.open_unix_connection(socket)
        except OSError:
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("made_before")
async def test_servers_are_out_of_reach_of_the_terminal(data_dir: Path) -> None:
    async with EmbeddedServers(data_dir, on_exit=ignore_exit):
        sessions = {os.getsid(process.pid) for process in server_processes(data_dir)}

    assert os.getsid(0) not in sessions


async def test_no_server_runs_as_root_and_no_directory_is_opened_for_it(data_dir: Path) -> None:
    gate = data_dir.parent / "gate"
    gate.mkdir(mode=0o700)
    async with EmbeddedServers(gate / "data", on_exit=ignore_exit) as endpoints:
        await write_and_read(endpoints, "behind the gate")
        uids = {process.uids().real for process in server_processes(gate / "data")}
        sockets = gate / "data" / "run"
        assert sockets.stat().st_uid in uids
        assert sockets.stat().st_mode & 0o777 == 0o700

    assert len(uids) == 1
    assert (0 in uids) is False
    assert (os.geteuid() in uids) is not AS_ROOT
    assert gate.stat().st_mode & 0o777 == 0o700


async def test_ordinary_user_runs_both_servers_as_itself(open_dir: Path, serve: Serve) -> None:
    where = open_dir / "data"
    argv = launch_argv((sys.executable, SERVE, where), open_dir, reach=[sys.prefix, sys.base_prefix])
    user = NOBODY.pw_uid if AS_ROOT else os.geteuid()

    serving = await serve(where, argv=argv)
    kept = await write_and_read(await serving.endpoints(), "first")

    assert kept == (["first"], ["first"])
    assert {process.uids().real for process in server_processes(where)} == {user}
    assert where.stat().st_mode & 0o777 == 0o700
    assert await serving.end(signal.SIGTERM) == 0
    assert not server_processes(where)


async def test_data_of_an_ordinary_user_stays_its_own_when_root_serves_it(open_dir: Path, serve: Serve) -> None:
    where = open_dir / "data"
    user = NOBODY.pw_uid if AS_ROOT else os.geteuid()
    argv = launch_argv((sys.executable, SERVE, where), open_dir, reach=[sys.prefix, sys.base_prefix])
    serving = await serve(where, argv=argv)
    await write_and_read(await serving.endpoints(), "first")
    await serving.end(signal.SIGTERM)

    async with EmbeddedServers(where, on_exit=ignore_exit) as endpoints:
        kept = await write_and_read(endpoints, "second")
        uids = {process.uids().real for process in server_processes(where)}

    assert kept == (["first", "second"], ["first", "second"])
    assert uids == {user}


@pytest.mark.parametrize(
    ("limit", "buffers"),
    [("268435456\n", 128), ("2147483648\n", 256), ("1099511627776\n", None), ("max\n", None), (None, None)],
)
def test_buffers_follow_the_memory_of_machine_and_container(tmp_path: Path, limit: str | None, buffers: int | None) -> None:
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    of_machine_mb = psutil.virtual_memory().total // 8 // 2**20

    given = buffers_mb(file)

    assert given == max(128, min(512, of_machine_mb, 512 if buffers is None else buffers))
