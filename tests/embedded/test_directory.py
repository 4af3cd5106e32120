"""The lock, the root key, the published endpoints, and where the sockets are."""

import asyncio
import concurrent.futures
import hashlib
import os
import re
import signal
import threading
from pathlib import Path

import pytest
from embedded_probe import Serve, write_and_read

from app.embedded import (
    DataDirectoryRefused,
    EmbeddedServers,
    ServersNotRunning,
    read_endpoints,
    root_key,
)
from app.embedded.directory import DataDirectory, make_endpoints, make_sockets_directory

THREADS = 8
SHORT = Path("/tmp")


def ignore_exit(_name: str, _code: int) -> None:
    """Take no note of a restart."""


def test_root_key_is_made_once_and_private(data_dir: Path) -> None:
    first = root_key(data_dir)
    again = root_key(data_dir)

    assert re.fullmatch(r"shx_root_[A-Za-z0-9_-]{43}", first)
    assert again == first
    assert (data_dir / "root.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in data_dir.iterdir()] == ["root.key"]


def test_root_key_asked_for_at_once_is_one_key(data_dir: Path) -> None:
    barrier = threading.Barrier(THREADS)

    def ask(_: int) -> str:
        barrier.wait()
        return root_key(data_dir)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        keys = set(threads.map(ask, range(THREADS)))

    assert len(keys) == 1


def test_damaged_root_key_is_refused_not_replaced(data_dir: Path) -> None:
    root_key(data_dir)
    (data_dir / "root.key").write_text("shx_root_short\n")

    with pytest.raises(DataDirectoryRefused, match=r"root\.key"):
        root_key(data_dir)

    assert (data_dir / "root.key").read_text() == "shx_root_short\n"


@pytest.mark.usefixtures("made_before")
async def test_endpoints_are_published_only_while_servers_run(data_dir: Path, serve: Serve) -> None:
    with pytest.raises(ServersNotRunning, match=re.escape(str(data_dir))):
        read_endpoints(data_dir)

    serving = await serve(data_dir)
    printed = await serving.endpoints()
    published = read_endpoints(data_dir)
    await serving.end(signal.SIGTERM)

    assert published == printed
    with pytest.raises(ServersNotRunning):
        read_endpoints(data_dir)
    assert not (data_dir / "endpoints.json").exists()


async def test_asking_for_endpoints_does_not_make_a_start_fail(data_dir: Path) -> None:
    root_key(data_dir)
    (data_dir / "lock").touch()
    asking = True

    async def ask() -> None:
        while asking:
            with pytest.raises(ServersNotRunning):
                read_endpoints(data_dir)
            await asyncio.sleep(0)

    questions = asyncio.create_task(ask())
    async with EmbeddedServers(data_dir, on_exit=ignore_exit):
        asking = False
    await questions


async def test_long_path_puts_the_sockets_into_a_short_private_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 20) / ("path" * 20) / "data"
    async with EmbeddedServers(deep, on_exit=ignore_exit) as endpoints:
        kept = await write_and_read(endpoints, "first")
        digest = hashlib.sha256(os.fsencode(deep.resolve())).hexdigest()[:12]
        sockets = SHORT / f"shieldx-{digest}"
        status = sockets.stat()
        assert read_endpoints(deep) == endpoints == make_endpoints(sockets)

    assert kept == (["first"], ["first"])
    assert status.st_mode & 0o777 == 0o700
    assert status.st_uid == (deep / "postgres").stat().st_uid
    assert not sockets.exists()


async def test_path_with_odd_characters_is_served(tmp_path: Path) -> None:
    for odd in (tmp_path / "a b'\"%?#é", tmp_path / "a,b"):
        async with EmbeddedServers(odd, on_exit=ignore_exit) as endpoints:
            kept = await write_and_read(endpoints, "first")

        assert kept == (["first"], ["first"])


def test_short_name_taken_by_others_is_not_used(tmp_path: Path) -> None:
    directory = DataDirectory.at(tmp_path / ("long" * 30))
    taken = SHORT / f"shieldx-{hashlib.sha256(os.fsencode(directory.root)).hexdigest()[:12]}"
    taken.mkdir(mode=0o755)
    try:
        chosen = make_sockets_directory(directory, None)
        assert chosen != taken
        assert chosen.stat().st_mode & 0o777 == 0o700
        chosen.rmdir()
    finally:
        taken.rmdir()
