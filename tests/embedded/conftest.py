"""Fixtures for the embedded servers: real processes in real directories."""

import asyncio
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from embedded_probe import SERVE, Serve, Serving, server_processes

from app.embedded import EmbeddedServers


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Only asyncio's own loop starts a process as another user."""
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory yet to be made; at the end nothing may run in it."""
    path = tmp_path.resolve() / "data"
    yield path
    left = server_processes(path)
    for process in left:
        process.kill()
    assert not left


@pytest.fixture(scope="session")
def first_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a first start and a stop leave in a data directory."""
    path = tmp_path_factory.mktemp("embedded").resolve() / "data"

    async def make() -> None:
        async with EmbeddedServers(path, on_exit=lambda *_: None):
            pass

    asyncio.run(make())
    return path


@pytest.fixture
def made_before(first_data: Path, data_dir: Path) -> None:
    """Put a copy of that into the data directory of the test, which then needs no initdb."""
    subprocess.run(["cp", "-a", first_data, data_dir], check=True)


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """An empty directory that every user can reach and write."""
    with tempfile.TemporaryDirectory(prefix="shieldx-test-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


@pytest.fixture
async def serve(data_dir: Path) -> AsyncIterator[Serve]:
    """Start `serve.py` in a process of its own; `argv` may name another way to run it."""
    started: list[Serving] = []

    async def start(where: Path, *, loop: str = "asyncio", argv: tuple[str, ...] | None = None) -> Serving:
        started.append(await Serving.start(*(argv or (sys.executable, SERVE, where, loop))))
        return started[-1]

    yield start
    for serving in started:
        await serving.end(signal.SIGTERM)
